#!lua flags=allow-oom
--[[
Take entries back that others have read with our group, in a lane that is the caller's.

Somebody who reads by hand, with another consumer's name, takes entries away from the
lane. So does who acknowledges them or sets the group's position: then they are in no
pending list, but between the last entry that the lane knows and that position.

Entries may be large, and XRANGE has no way to leave their fields in the server: so few
are read at a time, and no more than the bytes allow.

KEYS  1 owner, then one ingress stream a span
ARGV  1 owner value  2 group  3 consumer  4 entries  5 bytes of a span, about, at most,
      then of each span:
      the last entry that the lane has read before it ('' if it does not know), the
      first one behind it ('' if that is all up to the group's position)
Returns  {of each span: how many entries were taken back, the id behind which there
         may be more ('' for none)}
         | {'superseded'}
Atomicity  one script, one slot.
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'superseded'}
end
local group, ours, most, most_bytes = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local STEP = 8

-- Ids of the entries that are pending for other consumers; *most*, of however many.
local function pending(key)
  local ids, summary = {}, redis.pcall('XPENDING', key, group)
  if summary['err'] or summary[1] == 0 then
    return ids
  end
  for _, consumer in ipairs(summary[4]) do
    local left = most - #ids
    if consumer[1] ~= ours and left > 0 then
      for _, entry in ipairs(redis.call('XPENDING', key, group, '-', '+', left, consumer[1])) do
        ids[#ids + 1] = entry[1]
      end
    end
  end
  return ids
end

-- The group's position.
local function position(key)
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  for _, fields in ipairs(groups['err'] and {} or groups) do
    local found = {}
    for i = 1, #fields, 2 do
      found[fields[i]] = fields[i + 1]
    end
    if found['name'] == group then
      return found['last-delivered-id']
    end
  end
end

-- Adds to *ids* those of the entries behind *after*, up to *last*; returns the id behind
-- which there may be more.
local function between(key, after, last, ids)
  local count, bytes = 0, 0
  while count < most and bytes < most_bytes do
    -- Behind the highest id there is nothing, and XRANGE refuses to look.
    local found = redis.pcall('XRANGE', key, '(' .. after, last, 'COUNT', STEP)
    for _, entry in ipairs(found) do
      after = entry[1]
      ids[#ids + 1] = after
      for _, value in ipairs(entry[2]) do
        bytes = bytes + #value
      end
    end
    if #found < STEP then
      return ''
    end
    count = count + STEP
  end
  return after
end

local answer = {}
for i = 2, #KEYS do
  local key, after, before = KEYS[i], ARGV[2 + 2 * i], ARGV[3 + 2 * i]
  local ids, more = pending(key), ''
  local last = before ~= '' and '(' .. before or position(key)
  if after ~= '' and last then
    more = between(key, after, last, ids)
  end
  if #ids > 0 then
    local command = {'XCLAIM', key, group, ours, '0'}
    for _, id in ipairs(ids) do
      command[#command + 1] = id
    end
    command[#command + 1] = 'FORCE'
    command[#command + 1] = 'JUSTID'
    redis.call(unpack(command))
  end
  answer[#answer + 1] = #ids
  answer[#answer + 1] = more
end
return answer
