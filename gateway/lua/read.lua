#!lua flags=allow-oom
--[[
Read a lane's ingress, if the lane is still the caller's.

A paused owner that wakes up must not take entries away from its successor, so
reading is fenced like committing. XREADGROUP does not wait inside a script;
who finds nothing waits with a plain XREAD, which takes nothing away.

COUNT bounds entries, and an entry may have any size. So a first step of few entries
shows what those of each stream are like, and a second one reads as many more of them
as the bounds allow. An entry that is larger than any of ours stays here.

Who reads by hand with our group moves its position. So entries between the last one
that the lane knows and the first one of a read are told: somebody else has read them.

KEYS  1 owner, then one ingress stream each
ARGV  1 owner value  2 group  3 consumer  4 entries per stream of the first step
      5 entries  6 commands  7 bytes per stream, about, at most
      8 bytes  9 fields of an entry, at most  10 'news', or 'pending' for the consumer's
      own pending ones, then of each stream the last entry that the lane knows
Returns  {server time in ms, entries as XREADGROUP returns them or nil; one that is
         too large has its size in place of its fields; behind the entries of a stream
         stands 1 if there are others before them that the lane does not know}
         | {'superseded'}
         | {'nogroup'}: a group or stream is gone and must be made again
Atomicity  one script, one slot.
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'superseded'}
end
local first, most, most_commands, most_bytes, sent_bytes, sent_fields = tonumber(ARGV[4]),
  tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])

local news = ARGV[10] == 'news'

local function read(count, ...)
  return redis.pcall('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', count, 'STREAMS', ...)
end

-- Fields and bytes of the entries from index *from* on; too large ones are emptied.
local function measure(entries, from)
  local fields, bytes = 0, 0
  for i = from, #entries do
    local found = entries[i][2]
    if found then
      local size = 0
      for j = 1, #found do
        size = size + #found[j]
      end
      fields, bytes = fields + #found / 2, bytes + size
      if size > sent_bytes or #found > 2 * sent_fields then
        entries[i][2] = {tostring(size)}
      end
    end
  end
  return fields, bytes
end

-- How many more entries, if they are like the *count* first ones.
local function more(count, fields, bytes)
  return math.min(most - count,
    math.floor((most_commands - fields) * count / math.max(fields, 1)),
    math.floor((most_bytes - bytes) * count / math.max(bytes, 1)))
end

local streams, known = #KEYS - 1, {}
local names = {}
for i = 1, streams do
  local key, last = KEYS[1 + i], ARGV[10 + i]
  names[i], known[key] = key, last
  names[streams + i] = news and '>' or last
end
-- Whether entries lie between the last one that the lane knows and *first*.
local function skips(key, first)
  local found = redis.pcall('XRANGE', key, '(' .. known[key], '(' .. first, 'COUNT', 1)
  return #found > 0
end

local now = redis.call('TIME')
local found = read(first, unpack(names))
if type(found) == 'table' and found['err'] then
  if string.find(found['err'], 'NOGROUP', 1, true) then
    return {'nogroup'}
  end
  return found
end
for _, stream in ipairs(found or {}) do
  local key, entries = stream[1], stream[2]
  local count = #entries
  stream[3] = count > 0 and skips(key, entries[1][1]) and 1 or nil
  local fields, bytes = measure(entries, 1)
  local further = count == first and more(count, fields, bytes) or 0
  if further > 0 then
    local id = news and '>' or entries[count][1]
    local rest = read(further, key, id)
    if type(rest) == 'table' and not rest['err'] and rest[1] then
      for _, entry in ipairs(rest[1][2]) do
        entries[#entries + 1] = entry
      end
      measure(entries, count + 1)
    end
  end
end
return {now[1] * 1000 + math.floor(now[2] / 1000), found}
