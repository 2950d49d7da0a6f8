#!lua
--[[
Look whose lease is over, and note that somebody looked.

If nobody has looked for long (an outage of all replicas, a server that stood
still), silence proves nothing: until a whole TTL from now nobody is lost. Records of
the lost and left that are too old or too many go as well.

KEYS  1 owner  2 watch  3 deadlines  4 records  5 ended
ARGV  1 owner value  2 TTL in ms  3 how long a gap between two looks may be, in ms
      4 how the server tells of expired keys  5 how long to keep records, in ms
      6 how many to keep  7 how many to return, and to forget, at most
Returns  {'ok', length of the gap in ms if there was one, else 0, for how long nobody
         is lost yet in ms, how many live, then the members whose deadline is past}
         | {'superseded'}
Atomicity  one script, one slot.
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'superseded'}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ttl, most = tonumber(ARGV[2]), tonumber(ARGV[7])

local function text(number)
  return string.format('%.0f', number)
end

local watch = redis.call('HMGET', KEYS[2], 'swept_ms', 'grace_ms')
local swept, grace = tonumber(watch[1] or '') or now, tonumber(watch[2] or '0')
local gap = 0
if not watch[1] or now < swept or now - swept > tonumber(ARGV[3]) then
  gap, grace = now - swept, now + ttl
end
redis.call('HSET', KEYS[2],
  'swept_ms', text(now), 'grace_ms', text(grace), 'notified', ARGV[4])

local old = redis.call('ZRANGEBYSCORE', KEYS[5],
  '-inf', text(now - tonumber(ARGV[5])), 'LIMIT', 0, most)
if #old == 0 then
  local surplus = redis.call('ZCARD', KEYS[5]) - tonumber(ARGV[6])
  if surplus > 0 then
    old = redis.call('ZRANGE', KEYS[5], 0, math.min(surplus, most) - 1)
  end
end
if #old > 0 then
  redis.call('ZREM', KEYS[5], unpack(old))
  redis.call('HDEL', KEYS[4], unpack(old))
end

local due = {}
if now >= grace then
  due = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', text(now), 'LIMIT', 0, most)
end
return {'ok', gap, math.max(0, grace - now), redis.call('ZCARD', KEYS[3]), unpack(due)}
