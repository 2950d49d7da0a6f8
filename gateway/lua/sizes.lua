#!lua flags=no-writes
--[[
Entries and bytes of some streams of one slot. SAMPLES 0 counts every node: an estimate
from the first ones would be deceived by small entries before large ones.

KEYS  the streams
Returns  of each: its length, its bytes (0 if it is not there)
Atomicity  one script, one slot.
]]
local found = {}
for i = 1, #KEYS do
  local length = redis.call('XLEN', KEYS[i])
  found[2 * i - 1] = length
  found[2 * i] = length > 0 and redis.call('MEMORY', 'USAGE', KEYS[i], 'SAMPLES', 0) or 0
end
return found
