#!lua flags=allow-oom
--[[
Find the oldest waiting entry of each stream: read and not settled, or unread.

Ids only, since an entry may be half a MiB.

KEYS  streams
ARGV  1 group
Returns  two strings a stream: id of the oldest pending entry, id of the oldest
         unread one; '' where there is none
Atomicity  one script, one slot; reads only.
]]
local found = {}
for i, key in ipairs(KEYS) do
  local pending, unread, after = '', '', '-'
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  if not groups['err'] then
    for _, fields in ipairs(groups) do
      local group = {}
      for n = 1, #fields, 2 do
        group[fields[n]] = fields[n + 1]
      end
      if group['name'] == ARGV[1] then
        after = '(' .. group['last-delivered-id']
        if group['pending'] > 0 then
          pending = redis.call('XPENDING', key, ARGV[1])[2] or ''
        end
      end
    end
    -- No id is beyond the highest one; Redis refuses to look there.
    if after ~= '(18446744073709551615-18446744073709551615' then
      local first = redis.call('XRANGE', key, after, '+', 'COUNT', 1)
      unread = first[1] and first[1][1] or ''
    end
  end
  found[2 * i - 1] = pending
  found[2 * i] = unread
end
return found
