#!lua flags=allow-oom
--[[
Release a lane, if it is still ours, and notify the others.

KEYS  1 owner
ARGV  1 owner value  2 channel to publish on
Returns  1 | 0 if it was not ours any more
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[2], 'released')
return 1
