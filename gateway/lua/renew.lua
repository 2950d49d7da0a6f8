#!lua flags=allow-oom
--[[
Prolong a lane that is still ours.

KEYS  1 owner
ARGV  1 owner value  2 TTL in ms
Returns  1 | 0 if it is not ours any more
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
