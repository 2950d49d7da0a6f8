#!lua flags=allow-oom
--[[
Forget losses that were announced to every partition.

KEYS  1 owner  2 losses
ARGV  1 owner value, then the fields
Returns  {'ok', how many are left} | {'superseded'}
Atomicity  one script, one slot.
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'superseded'}
end
redis.call('HDEL', KEYS[2], unpack(ARGV, 2))
return {'ok', redis.call('HLEN', KEYS[2])}
