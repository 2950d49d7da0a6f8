#!lua
--[[
Send a dead letter's command once more, if the letter is still there.

The command goes out and the letter goes away in one step: whatever crashes, and
however many ask at once, a letter is redriven at most once and never lost.

KEYS  1 dead letters  2 their index, see commit.lua  3 bytes by MAD
      4 the gateway's ingress of the same partition
ARGV  1 entry id of the letter  2 the command
Returns  1, or 0: the letter is gone; somebody redrove or dropped it, or it was
      pushed out by newer ones
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
redis.call('XADD', KEYS[4], '*', 'c', ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[1])
return 1
