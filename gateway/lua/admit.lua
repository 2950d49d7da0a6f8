#!lua
--[[
Make hot what the tiers below hold of a session.

KEYS  1 owner  2 session hash  3 recent list
ARGV  1 owner value ('': nobody owns it)  2 `absent`: only if it is not hot;
      `replace`: also then; `keep`: write the fields into the hot copy, no more
      3 TTL in ms  4 n, then n field names and values, then the recent entries
Returns  {'ok'} | {'there'} | {'superseded'}
Atomicity  one script, one slot.
]]
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
  return {'superseded'}
end
local there = redis.call('EXISTS', KEYS[2]) == 1
if ARGV[2] == 'absent' and there then
  return {'there'}
end
local last = 4 + tonumber(ARGV[4])
if ARGV[2] == 'keep' then
  if there then
    redis.call('HSET', KEYS[2], unpack(ARGV, 5, last))
  end
  return {'ok'}
end
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('HSET', KEYS[2], unpack(ARGV, 5, last))
redis.call('PEXPIRE', KEYS[2], ARGV[3])
if #ARGV > last then
  redis.call('RPUSH', KEYS[3], unpack(ARGV, last + 1))
  redis.call('PEXPIRE', KEYS[3], ARGV[3])
end
return {'ok'}
