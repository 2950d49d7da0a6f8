#!lua flags=allow-oom
--[[
Forget publishers that have not been heard of for long.

A record that has changed since it was looked at belongs to a publisher that is
alive after all, and stays.

KEYS  1 owner  2 publishers
ARGV  1 owner value, then per publisher: field, value as it was looked at
Returns  how many were forgotten
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
local forgotten = 0
for i = 2, #ARGV, 2 do
  if redis.call('HGET', KEYS[2], ARGV[i]) == ARGV[i + 1] then
    forgotten = forgotten + redis.call('HDEL', KEYS[2], ARGV[i])
  end
end
return forgotten
