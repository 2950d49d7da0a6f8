#!lua
--[[
Confirm outbox entries that MongoDB holds, and forget them.

An entry that was confirmed before is not counted twice, since only the first
XACK of an entry returns 1.

KEYS  1 outbox  2 backlog
ARGV  1 group, then per entry: id, how many records it holds
Returns  the records still unconfirmed
]]
local confirmed = 0
for i = 2, #ARGV, 2 do
  if redis.call('XACK', KEYS[1], ARGV[1], ARGV[i]) == 1 then
    confirmed = confirmed + tonumber(ARGV[i + 1])
    redis.call('XDEL', KEYS[1], ARGV[i])
  end
end
return redis.call('DECRBY', KEYS[2], confirmed)
