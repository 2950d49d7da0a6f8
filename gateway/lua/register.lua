#!lua flags=allow-oom
--[[
Register a live replica; list the live ones, and those that ended without goodbye.

The first caller gets each ended replica, once.

KEYS  1 replicas
ARGV  1 replica name  2 TTL in ms; 0 takes the replica off the list
Returns  {for how many ms each of them had been out of time, names of the living},
         in no order
]]
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local over = string.format('(%.0f', ms)
local crashed = {}
local ended = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', over, 'WITHSCORES')
for i = 1, #ended, 2 do
  if ended[i] ~= ARGV[1] then
    crashed[#crashed + 1] = ms - tonumber(ended[i + 1])
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', over)
-- A time longer than anybody sets: the clock was set back. Who lives says so in time.
local ttl = tonumber(ARGV[2])
if ttl > 0 then
  local bound = string.format('(%.0f', ms + ttl + 1000)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], bound, '+inf')) do
    redis.call('ZADD', KEYS[1], string.format('%.0f', ms + ttl), name)
  end
end
if ttl > 0 then
  redis.call('ZADD', KEYS[1], string.format('%.0f', ms + ttl), ARGV[1])
else
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return {crashed, redis.call('ZRANGE', KEYS[1], 0, -1)}
