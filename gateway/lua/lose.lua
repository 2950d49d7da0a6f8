#!lua flags=allow-oom
--[[
Declare instances lost, if their leases are still over.

The caller may be wrong, late, or woken by a forged event: all is read again here.
Unread heartbeats may prove an instance alive, so it is left for the next sweep while
there are any of its MAD, but not for longer than the patience: a noisy sibling must
not keep the dead alive.

KEYS  1 owner  2 watch  3 deadlines  4 records  5 ended  6 losses  7 living, then of
      each: lease, heartbeat stream of its MAD
ARGV  1 owner value  2 how long a gap between two looks may be, in ms  3 patience in
      ms, then of each: MAD, instance, what noticed it
Returns  {'ok', how many were left for the next look, then MAD, instance, epoch and
         how late it was noticed in ms of each that is lost} | {'superseded'}
Atomicity  one script, one slot.
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'superseded'}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local watch = redis.call('HMGET', KEYS[2], 'swept_ms', 'grace_ms')
local gap, grace = now - tonumber(watch[1] or '0'), tonumber(watch[2] or '0')
if gap < 0 or gap > tonumber(ARGV[2]) or now < grace then
  return {'ok', 0}
end

local function text(number)
  return string.format('%.0f', number)
end

local waiting, lost = 0, {}
local key = 6
for i = 4, #ARGV, 3 do
  key = key + 2
  local mad, member = ARGV[i], ARGV[i] .. ':' .. ARGV[i + 1]
  local deadline = tonumber(redis.call('ZSCORE', KEYS[3], member) or '') or math.huge
  local late = now - math.max(deadline, grace)
  if late >= 0 and late < tonumber(ARGV[3]) and redis.call('XLEN', KEYS[key + 1]) > 0 then
    waiting = waiting + 1
  elseif late >= 0 then
    local record = redis.call('HGET', KEYS[4], member) or ''
    local epoch, times = string.match(record, '^%a+ (%d+) (%d+ %d+) ')
    redis.call('DEL', KEYS[key])
    redis.call('ZREM', KEYS[3], member)
    if epoch then
      redis.call('HSET', KEYS[4], member,
        table.concat({'lost', epoch, times, text(now), ARGV[i + 2]}, ' '))
      redis.call('ZADD', KEYS[5], text(now), member)
      redis.call('HSET', KEYS[6], member .. ':' .. epoch, 'lost')
      for _, value in ipairs({mad, ARGV[i + 1], epoch, late}) do
        lost[#lost + 1] = value
      end
    end
    if redis.call('HINCRBY', KEYS[7], mad, -1) <= 0 then
      redis.call('HDEL', KEYS[7], mad)
    end
  end
end
return {'ok', waiting, unpack(lost)}
