#!lua flags=allow-oom
--[[
Count the unsettled entries on the ingress stream of a MAD, and delete the stream.

A stream that is deleted too early takes commands with it that nobody will ever
hear of; so looking and deleting are one step.

KEYS  1 ingress stream
ARGV  1 group  2 'look' deletes nothing; 'settled' deletes the stream if all on it
      is settled; 'any' deletes it
Returns  {1 if it is gone now, else 0; entries read and not settled; entries that
      nobody has read, at least 1 if there is any}
Atomicity  one script, one slot.
]]
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {1, 0, 0}
end
local pending, last, lag = 0, '0-0', false
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local fields = {}
  for i = 1, #group, 2 do
    fields[group[i]] = group[i + 1]
  end
  if fields['name'] == ARGV[1] then
    pending, last, lag = fields['pending'], fields['last-delivered-id'], fields['lag']
  end
end
-- Whether there are any is looked up: the lag can be unknown, and can be wrong.
local unread = #redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)
if unread > 0 then
  unread = math.max(1, lag or redis.call('XLEN', KEYS[1]))
end
if ARGV[2] == 'look' or (ARGV[2] == 'settled' and pending + unread > 0) then
  return {0, pending, unread}
end
redis.call('DEL', KEYS[1])
return {1, pending, unread}
