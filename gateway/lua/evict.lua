#!lua
--[[
Remove a hot copy of which the tiers below hold everything.

KEYS  1 session hash  2 recent list  3 gone mark
ARGV  1 TTL of the mark in ms
Returns  1 if it is not hot any more, 0 if MongoDB does not hold all of it yet
Atomicity  one script, one slot.
]]
local told = redis.call('HMGET', KEYS[1], 'version', 'last_seq', 'durable_version', 'durable_seq')
if told[1] then
  if told[1] ~= told[3] or told[2] ~= told[4] then
    return 0
  end
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('SET', KEYS[3], 'elsewhere', 'PX', ARGV[1])
end
return 1
