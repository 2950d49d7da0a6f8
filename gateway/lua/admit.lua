#!lua flags=allow-oom
--[[
Make hot what the tiers below hold of a session, or keep the hot copy that is there,
and settle the commands that MongoDB holds of it.

The decision rests on a hot copy, or on there being none; it has no effect if that has
changed since. The commands are settled in the same script, so that no resend of one
finds its session hot and its number open.

KEYS  1 owner  2 session hash  3 recent list  4 publishers; then one ledger key per
      settled command without a number; then one per settled command that may have been
      refused while MongoDB was away, whose refusal was untrue
ARGV  1 owner value  2 `replace`: by what follows, also by nothing; `keep`: write the
      fields into the hot copy, no more  3 TTL of the hot copy in ms
      4 TTL of the ledger keys in ms
      5 C, then C times: what version, last_seq, notices, created_at, lineage were
      ('' for none; C is 0 if they could not be read)
      count, fields and values; count, recent entries; count, publishers and records;
      count of the commands without a number
Returns  {'ok'} | {'changed'} | {'superseded'}
Atomicity  one script, one slot. Also out of memory, since a read waits for it; a
      server in that state takes no new reads that could ask for more.
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'superseded'}
end
local compared = tonumber(ARGV[5])
if compared > 0 then
  local there = redis.pcall('HMGET', KEYS[2],
    'version', 'last_seq', 'notices', 'created_at', 'lineage')
  for i = 1, compared do
    if there['err'] or (there[i] or '') ~= ARGV[5 + i] then
      return {'changed'}
    end
  end
end

local at = 6 + compared

-- Call *name* on *key* with the next counted run of arguments, some at a time.
local function each(name, key)
  local count = tonumber(ARGV[at])
  for first = at + 1, at + count, 1000 do
    redis.call(name, key, unpack(ARGV, first, math.min(first + 999, at + count)))
  end
  at = at + count + 1
  return count > 0
end

if ARGV[2] == 'replace' then
  redis.call('DEL', KEYS[2], KEYS[3])
end
if each('HSET', KEYS[2]) and ARGV[2] == 'replace' then
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
if each('RPUSH', KEYS[3]) then
  redis.call('PEXPIRE', KEYS[3], ARGV[3])
end
each('HSET', KEYS[4])
local free = 4 + tonumber(ARGV[at])
for i = 5, #KEYS do
  redis.call('SET', KEYS[i], '', 'PX', ARGV[4], i <= free and 'NX' or 'XX')
end
return {'ok'}
