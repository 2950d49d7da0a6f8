#!lua flags=allow-oom
--[[
Note, before it is tried, that a suspect command is about to be tried alone.

If the trial kills the replica, the note is what the next one finds.

KEYS  1 owner  2 attempts
ARGV  1 owner value  2 field  3 who tries it  4 how long a history to keep, bytes
Returns  the history so far, one replica a line | {'superseded'}
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'superseded'}
end
local history = redis.call('HGET', KEYS[2], ARGV[2]) or ''
local longer = string.sub(history .. ARGV[3] .. '\n', -tonumber(ARGV[4]))
redis.call('HSET', KEYS[2], ARGV[2], longer)
return history
