#!lua flags=allow-oom
--[[
Take a lane that nobody holds, or that an earlier life of the same replica holds, or
one that has died. Who is wrong about a death costs a hand-over: the epoch fences.

A replica that restarts under its own name need not wait for the TTL: the epoch
fences its former self. Epochs grow also over a FLUSHALL, since the server's
clock in milliseconds is their lower bound. A remaining time longer than anybody sets
is not believed: the server's clock was set back, and the holder may be dead.

KEYS  1 owner  2 epoch
ARGV  1 replica name  2 incarnation  3 TTL in ms  then the dead replicas
Returns  {1, owner value now ours} | {0, owner value of somebody else}
Atomicity  one script, one slot.
]]
local held = redis.call('GET', KEYS[1])
if held and redis.call('PTTL', KEYS[1]) <= tonumber(ARGV[3]) + 1000 then
  local name, life = string.match(held, '^%d+:(.*)/([^/]*)$')
  local free = name == ARGV[1] and life ~= ARGV[2]
  for i = 4, #ARGV do
    free = free or name == ARGV[i]
  end
  if not free then
    return {0, held}
  end
end
local now = redis.call('TIME')
local epoch = tonumber(redis.call('GET', KEYS[2]) or '0') + 1
epoch = string.format('%.0f', math.max(epoch, now[1] * 1000 + math.floor(now[2] / 1000)))
local mine = epoch .. ':' .. ARGV[1] .. '/' .. ARGV[2]
redis.call('SET', KEYS[2], epoch)
redis.call('SET', KEYS[1], mine, 'PX', ARGV[3])
return {1, mine}
