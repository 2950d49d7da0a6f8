#!lua flags=allow-oom
--[[
Remove a hot copy of which the tiers below hold everything.

KEYS  1 session hash  2 recent list  3 gone mark
ARGV  1 TTL of the mark in ms
Returns  1 if it is not hot any more, 0 if MongoDB does not hold all of it yet
Atomicity  one script, one slot.
]]
local stored = redis.call('HMGET', KEYS[1], 'version', 'last_seq', 'notices',
  'durable_version', 'durable_seq', 'durable_notices', 'refused')
if stored[1] then
  if stored[1] ~= stored[4] or stored[2] ~= stored[5] or stored[7] == '1' then
    return 0
  end
  -- Neither field is in copies that are older than notices.
  if (stored[3] or '0') ~= (stored[6] or '0') then
    return 0
  end
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('SET', KEYS[3], 'elsewhere', 'PX', ARGV[1])
end
return 1
