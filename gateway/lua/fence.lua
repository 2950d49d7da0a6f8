#!lua flags=allow-oom
--[[
Let an archiver alone read one partition's outbox, unless a later one may already.

On one server reading is fenced by the lease itself; on a Redis Cluster that lies in
another slot, so each partition has a copy, which only ever goes to a higher epoch.

KEYS  1 drainer
ARGV  1 owner value of the lease, `<epoch>:…`
Returns  1, or 0: a later archiver's
Atomicity  one script, one slot.
]]
local function epoch(owner)
  return tonumber(string.match(owner or '', '^%d+')) or 0
end

if epoch(redis.call('GET', KEYS[1]) or '') > epoch(ARGV[1]) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1])
return 1
