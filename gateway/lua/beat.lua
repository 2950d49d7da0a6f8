#!lua flags=allow-oom
--[[
Apply the heartbeats of one MAD, and take them off its stream in the same step.

So the stream holds exactly the heartbeats not yet applied, across changes of owner.
An ended epoch stays ended. A stream that is empty goes as a whole: a hostile id
at the end of all ids would else keep the MAD's instances silent for ever.

A lease counts from the heartbeat's arrival, but lasts a third of the TTL from now
at least, so that an owner that is behind makes nobody late. The key goes one ms
after the deadline: who is woken by it finds the deadline passed.

KEYS  1 owner  2 deadlines  3 records  4 ended  5 losses  6 living  7 stream, then
      one lease each
ARGV  1 owner value  2 MAD  3 TTL in ms  4 how many of its instances may live
      5 n, then n ids of stream entries, then of each heartbeat: instance, epoch,
      arrival in ms, `beat` or `leave`
Returns  {'ok', how many found no room, how many left, then instance and epoch of
         each whose epoch is over} | {'superseded'}
Atomicity  one script, one slot.
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'superseded'}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local mad, ttl, most = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local before = tonumber(redis.call('HGET', KEYS[6], mad) or '0')
local living, crowded, left, refused = before, 0, 0, {}

local function text(number)
  return string.format('%.0f', number)
end

local function renew(member, lease, epoch, since, heard)
  local deadline = math.max(heard + ttl, now + math.floor(ttl / 3))
  redis.call('SET', lease, epoch, 'PXAT', text(deadline + 1))
  redis.call('ZADD', KEYS[2], text(deadline), member)
  redis.call('HSET', KEYS[3], member,
    table.concat({'living', epoch, since, text(heard), '0', '-'}, ' '))
end

local function leave(member, lease, epoch, since, heard)
  redis.call('DEL', lease)
  redis.call('ZREM', KEYS[2], member)
  redis.call('HSET', KEYS[3], member,
    table.concat({'left', epoch, since, text(heard), text(now), '-'}, ' '))
  redis.call('ZADD', KEYS[4], text(now), member)
  redis.call('HSET', KEYS[5], member .. ':' .. epoch, 'left')
end

local ids = tonumber(ARGV[5])
local lease = 7
for i = 6 + ids, #ARGV, 4 do
  lease = lease + 1
  local instance, epoch, kind = ARGV[i], ARGV[i + 1], ARGV[i + 3]
  local heard = math.min(tonumber(ARGV[i + 2]), now)
  local member = mad .. ':' .. instance
  local record = redis.call('HGET', KEYS[3], member) or ''
  local state, known, since = string.match(record, '^(%a+) (%d+) (%d+) ')
  local ahead = tonumber(epoch) - tonumber(known or '0')
  if ahead < 0 and state == 'living' or kind == 'leave' and state ~= 'living' then
    -- A straggler of an epoch before, or a goodbye of somebody who is gone.
  elseif state and state ~= 'living' and ahead <= 0 then
    refused[#refused + 1] = instance
    refused[#refused + 1] = known
  elseif kind == 'leave' then
    leave(member, KEYS[lease], epoch, since, heard)
    living, left = living - 1, left + 1
  elseif state ~= 'living' and living >= most then
    crowded = crowded + 1
  else
    if state ~= 'living' then
      redis.call('ZREM', KEYS[4], member)
      living = living + 1
    end
    renew(member, KEYS[lease], epoch, ahead > 0 and text(heard) or since, heard)
  end
end
if living <= 0 then
  redis.call('HDEL', KEYS[6], mad)
elseif living ~= before then
  redis.call('HSET', KEYS[6], mad, text(living))
end
if ids > 0 then
  redis.call('XDEL', KEYS[7], unpack(ARGV, 6, 5 + ids))
end
if redis.call('XLEN', KEYS[7]) == 0 then
  redis.call('DEL', KEYS[7])
end
return {'ok', crowded, left, unpack(refused)}
