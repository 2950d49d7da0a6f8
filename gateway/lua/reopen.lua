#!lua flags=allow-oom
--[[
Give a new connection of a lane an epoch of its own.

Whatever an earlier connection of the lane still carries has a lower epoch, and the
fence of every script refuses it. The caller proposes the epoch, each time a higher
one: so a reopen that arrives late, behind the one of a newer connection, is refused
like anything else that is late. The TTL stays: it is the manager's to renew.

KEYS  1 owner  2 epoch
ARGV  1 proposed epoch  2 `<replica>/<life>` that must hold the lane
Returns  {'ok'} | {'superseded'}
Atomicity  one script, one slot. It replaces two small values by values of their size,
      so a server that is out of memory runs it as well.
]]
local epoch, holder = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+):(.*)$')
if holder ~= ARGV[2] or tonumber(epoch) >= tonumber(ARGV[1]) then
  return {'superseded'}
end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('SET', KEYS[1], ARGV[1] .. ':' .. holder, 'KEEPTTL')
return {'ok'}
