#!lua flags=allow-oom
--[[
Take entries back that others have read with our group, in a lane that is the caller's.

Somebody who reads by hand, with another consumer's name, takes entries away from the
lane. So does who acknowledges them or sets the group's position: then they are in no
pending list, but between the last entry that the lane knows and that position.

KEYS  1 owner, then one ingress stream a span
ARGV  1 owner value  2 group  3 consumer  4 entries a span at most, then of each span:
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
local group, ours, most = ARGV[2], ARGV[3], tonumber(ARGV[4])

-- Ids of the entries that are pending for other consumers.
local function pending(key)
  local ids, summary = {}, redis.pcall('XPENDING', key, group)
  if summary['err'] or summary[1] == 0 then
    return ids
  end
  for _, consumer in ipairs(summary[4]) do
    if consumer[1] ~= ours then
      for _, entry in ipairs(redis.call('XPENDING', key, group, '-', '+', most, consumer[1])) do
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

local answer = {}
for i = 2, #KEYS do
  local key, after, before = KEYS[i], ARGV[1 + 2 * i], ARGV[2 + 2 * i]
  local ids, more = pending(key), ''
  local last = before ~= '' and '(' .. before or position(key)
  if after ~= '' and last then
    local found = redis.call('XRANGE', key, '(' .. after, last, 'COUNT', most)
    for _, entry in ipairs(found) do
      ids[#ids + 1] = entry[1]
    end
    more = #found == most and found[most][1] or ''
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
