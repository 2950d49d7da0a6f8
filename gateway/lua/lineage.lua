#!lua flags=allow-oom
--[[
The lineage of a partition's hot data: begin a new one if the server may have lost
writes since the last look.

The server's identity is its run and the primary that it followed before. Another
primary, a restart, a restored copy: another identity. FLUSHALL: no lineage is there.
A lineage is a number; each is higher than those before it, also if the old number is
lost, since both clocks are lower bounds.

KEYS  1 owner  2 lineage  3 born, which managers older than lineages read
ARGV  1 owner value  2 run  3 identity of the former primary
      4 the caller's clock, ms  5 `moved`: the server's clock has moved by itself
Returns  {lineage, ms since which the hot tier has lost nothing, 0 if the lineage
         was there, 1 if it began now, 2 if there was another one before}
         | {'superseded'}
Atomicity  one script, one slot. It replaces a few small values by values of their
      size, so a server that is out of memory runs it as well.
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'superseded'}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HMGET', KEYS[2], 'lineage', 'run', 'former', 'since', 'clock')
local lineage, since, began = tonumber(held[1] or '0'), tonumber(held[4] or '0'), 0
if lineage == 0 or held[2] ~= ARGV[2] or held[3] ~= ARGV[3] then
  began = lineage == 0 and 1 or 2
  lineage, since = math.max(lineage + 1, now, tonumber(ARGV[4])), now
elseif ARGV[5] == 'moved' or now < tonumber(held[5]) then
  -- Hot copies may have expired early, by a clock that was ahead.
  since = math.max(since, now)
end
lineage, since = string.format('%.0f', lineage), string.format('%.0f', since)
redis.call('HSET', KEYS[2], 'lineage', lineage, 'run', ARGV[2], 'former', ARGV[3],
  'since', since, 'clock', string.format('%.0f', now))
redis.call('SET', KEYS[3], ARGV[3] .. ':' .. since)
return {lineage, since, began}
