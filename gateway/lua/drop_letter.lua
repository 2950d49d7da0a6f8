#!lua flags=allow-oom
--[[
Remove a dead letter for good, and from the index of its MAD's letters.

KEYS  1 dead letters  2 their index, see commit.lua  3 bytes by MAD
ARGV  1 entry id of the letter
Returns  1, or 0: the letter is gone
Atomicity  one script, one slot.
]]
local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
if #found == 0 then
  return 0
end
local letter = {}
for i = 1, #found[1][2], 2 do
  letter[found[1][2][i]] = found[1][2][i + 1]
end
local mad, size = letter['m'], #(letter['d'] or '')
if mad then
  local ms, n = string.match(ARGV[1], '^(%d+)-(%d+)$')
  local member = mad .. '\0' .. string.rep('0', 20 - #ms) .. ms
    .. string.rep('0', 20 - #n) .. n .. '\0' .. size
  if redis.call('ZREM', KEYS[2], member) == 1 then
    redis.call('HINCRBY', KEYS[3], mad, -size)
  end
end
redis.call('XDEL', KEYS[1], ARGV[1])
return 1
