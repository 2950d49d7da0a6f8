#!lua flags=allow-oom
--[[
List the leases that are over, and note the time of this sweep.

If nobody has looked for long (an outage of all replicas, a server that stood
still), silence proves nothing: until a whole TTL from now nobody is lost. The same
holds while the server is out of memory, since it takes no heartbeat then. Records of
the lost and left that are too old or too many go as well.

If the server's clock was set, all deadlines move with it: the caller's own clock tells
how much time has passed. No deadline is longer from now than a TTL, whoever set it.

KEYS  1 owner  2 watch  3 deadlines  4 records  5 ended
ARGV  1 owner value  2 TTL in ms  3 how long a gap between two looks may be, in ms
      4 how the server tells of expired keys  5 how long to keep records, in ms
      6 how many to keep  7 how many to return, and to forget, at most  8 ms since
      the last sweep on the caller's clock, '' if it made none  9 difference of the
      two clocks that proves a step, in ms
Returns  {'ok', length of the gap in ms if there was one, else 0, for how long nobody
         is lost yet in ms, how many live, by how many ms the clock was set (0: it was
         not), then the members whose deadline is past}
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

local function is_full()
  local info = redis.pcall('INFO', 'memory')
  local text = type(info) == 'string' and info or ''
  local function number(name)
    return tonumber(string.match(text, '\n' .. name .. ':(%d+)') or '0')
  end
  local limit = number('maxmemory')
  return limit > 0
    and number('used_memory') - number('mem_not_counted_for_evict') >= limit
end

local watch = redis.call('HMGET', KEYS[2], 'swept_ms', 'grace_ms')
local swept, grace = tonumber(watch[1] or '') or now, tonumber(watch[2] or '0')
local elapsed, step = tonumber(ARGV[8]), 0
if watch[1] and elapsed then
  step = now - swept - elapsed
  if math.abs(step) < tonumber(ARGV[9]) then
    step = 0
  end
end
if step ~= 0 then
  local all = redis.call('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES')
  for i = 1, #all, 2 do
    redis.call('ZADD', KEYS[3], text(tonumber(all[i + 1]) + step), all[i])
  end
  swept, grace = swept + step, math.max(0, grace + step)
end
local gap = 0
if not watch[1] or now < swept or now - swept > tonumber(ARGV[3]) then
  gap, grace = now - swept, now + ttl
end
if is_full() then
  grace = now + ttl
end
grace = math.min(grace, now + ttl)
local ahead = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. text(now + ttl), '+inf')
for _, member in ipairs(ahead) do
  redis.call('ZADD', KEYS[3], text(now + ttl), member)
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
local living = redis.call('ZCARD', KEYS[3])
return {'ok', gap, math.max(0, grace - now), living, step, unpack(due)}
