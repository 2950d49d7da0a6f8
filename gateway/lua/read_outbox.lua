#!lua flags=allow-oom
--[[
Read outboxes, if the archiver's lease is still the caller's.

A paused owner that wakes up must not take entries away from its successor, so
reading is fenced like committing. XREADGROUP does not wait inside a script;
who finds nothing waits with a plain XREAD, which takes nothing away.

KEYS  1 owner, then one outbox each
ARGV  1 owner value  2 group  3 consumer  4 entries per stream at most, then one
      id each: '>' for news, an id for the consumer's own pending behind it
Returns  {server time in ms, entries as XREADGROUP returns them or nil}
         | {'superseded'}
         | {'nogroup'}: a group or stream is gone and must be made again
Atomicity  one script, one slot.
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'superseded'}
end
local call = {'XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[4], 'STREAMS'}
for i = 2, #KEYS do
  call[#call + 1] = KEYS[i]
end
for i = 5, #ARGV do
  call[#call + 1] = ARGV[i]
end
local now = redis.call('TIME')
local entries = redis.pcall(unpack(call))
if type(entries) == 'table' and entries['err'] then
  if string.find(entries['err'], 'NOGROUP', 1, true) then
    return {'nogroup'}
  end
  return entries
end
return {now[1] * 1000 + math.floor(now[2] / 1000), entries}
