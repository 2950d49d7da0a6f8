#!lua flags=allow-oom
--[[
Measure the memory of the server that has the key.

KEYS  1 any key
Returns  {bytes that count against the limit, the limit: 0 without one}
Atomicity  one command; reads only.
]]
local info = redis.pcall('INFO', 'memory')
local text = type(info) == 'string' and info or ''

local function number(name)
  return tonumber(string.match(text, '\n' .. name .. ':(%d+)') or '0')
end

return {number('used_memory') - number('mem_not_counted_for_evict'), number('maxmemory')}
