#!lua flags=allow-oom
--[[
End the leases of instances whose connections closed and did not come back.

Only the deadline moves: the sweep then declares them lost as ever. A heartbeat since
the silence began proves an instance alive, and its lease stays.

KEYS  1 owner  2 deadlines  3 records, then one lease each
ARGV  1 owner value, then of each: `<mad>:<instance>`, for how many ms nobody has
      listened to its channel
Returns  {'ok', how many leases were shortened} | {'superseded'}
Atomicity  one script, one slot.
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'superseded'}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function text(number)
  return string.format('%.0f', number)
end

local shortened, lease = 0, 3
for i = 2, #ARGV, 2 do
  lease = lease + 1
  local member, since = ARGV[i], now - tonumber(ARGV[i + 1])
  local deadline = tonumber(redis.call('ZSCORE', KEYS[2], member) or '0')
  local record = redis.call('HGET', KEYS[3], member) or ''
  local heard = tonumber(string.match(record, '^living %d+ %d+ (%d+) ') or '')
  if deadline > now and heard and heard < since then
    redis.call('ZADD', KEYS[2], text(now), member)
    redis.call('PEXPIREAT', KEYS[lease], text(now + 1))
    shortened = shortened + 1
  end
end
return {'ok', shortened}
