#!lua flags=allow-oom
--[[
Create missing consumer groups, and their streams.

A script, since a server that is out of memory refuses XGROUP CREATE also of a group
that exists, and the lane or drain that asks is the one that frees memory.

KEYS  streams
ARGV  1 group, then of each stream: the id behind which the group begins
Returns  of each stream 1 if its group was created, 0 if it existed
Atomicity  one script, one slot.
]]
local made = {}
for i, stream in ipairs(KEYS) do
  local reply = redis.pcall('XGROUP', 'CREATE', stream, ARGV[1], ARGV[1 + i], 'MKSTREAM')
  if not reply['err'] then
    made[i] = 1
  elseif string.find(tostring(reply['err']), 'BUSYGROUP', 1, true) then
    made[i] = 0
  else
    return reply
  end
end
return made
