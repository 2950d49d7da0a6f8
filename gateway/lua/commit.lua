#!lua flags=allow-oom
--[[
Commit one batch of settled commands: all of it, or none of it.

Every check comes before the first write, since a script that fails midway
keeps its earlier writes. The shebang makes the server refuse the script up
front when it could not write (read-only, failed AOF). Out of memory it runs: it
answers reads and refusals, and takes what it commits off the ingress. The lane
decides less then, see `Lane.note_memory`.

It compares all that the decisions rest on: the owner, and of each session and each
publisher what was read of it. Under one epoch nobody else writes these; the
comparison is the second lock behind the epoch, and the one that notices a copy that
went back in time.

KEYS  1 owner  2 outbox  3 backlog  4 publishers  5 dead  6 attempts
      7 checkpoints, then S times: session hash, recent list; D times: gone mark
      of a deleted session; I times: ingress stream; R times: reply stream,
      ledger key
ARGV  1 owner value  2 S  3 I  4 R  5 group  6 reply TTL ms  7 ledger TTL ms
      8 dead letters of a MAD at most, `<count>,<bytes>`  9 outbox records  10 outbox value  11 replies held until
      MongoDB holds the records ('' for none)  12 D, then D marks, then
      S times the state that was read, `<version>,<last_seq>,<notices>,<created_at>`
        ('' for none); count, publishers and their records as read ('' for none);
      S times: field count (-1 deletes), fields and values, entry count,
        entries, tail length to keep (-1: the whole);
      count, publisher fields and values; count, attempts to forget;
      count, per dead letter: cause, MAD, value;
      I times: MAD, id count, ids to acknowledge, id to trim below ('' for none);
      R times: flags (1 reply stream, 2 ledger, 4 the ledger's value is another one),
        value, and that other one if so;
      count, per wake-up: channel, message
      Then, only if who is in which session changes (KEYS: attached, fences, the
      gateway's ingress): count, members to add; count, members to remove; count,
      fences and values; count, per entry on that ingress: count, fields and values
Returns  {'ok', backlog, dead letters that were dropped for newer ones} | {'superseded'} | {'stale', index of session
         or publisher, ...}
Atomicity  one script, one slot.
]]
local FIXED_KEYS, FIXED_ARGS = 7, 12 + tonumber(ARGV[12])
local sessions, ingresses, replies = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'superseded'}
end
local stale = {'stale'}
for i = 1, sessions do
  local v = redis.call('HMGET', KEYS[FIXED_KEYS + 2 * i - 1],
    'version', 'last_seq', 'notices', 'created_at')
  local state = ''
  if v[1] then
    state = v[1] .. ',' .. (v[2] or '0') .. ',' .. (v[3] or '0') .. ',' .. (v[4] or '')
  end
  if state ~= ARGV[FIXED_ARGS + i] then
    stale[#stale + 1] = i
  end
end
local at = FIXED_ARGS + sessions + 2
local publishers = tonumber(ARGV[at - 1])
if publishers > 0 then
  local names = {}
  for i = 1, publishers do
    names[i] = ARGV[at + 2 * i - 2]
  end
  local records = redis.call('HMGET', KEYS[4], unpack(names))
  for i = 1, publishers do
    if (records[i] or '') ~= ARGV[at + 2 * i - 1] then
      stale[#stale + 1] = names[i]
    end
  end
end
if #stale > 1 then
  return stale
end

at = at + 2 * publishers
local key = FIXED_KEYS + 1

-- The next argument.
local function take()
  at = at + 1
  return ARGV[at - 1]
end

-- The bounds of the next counted run of arguments; nil if it is empty.
local function run()
  local count = tonumber(take())
  if count <= 0 then
    return nil, count
  end
  at = at + count
  return at - count, at - 1
end

for _ = 1, sessions do
  local hash, recent = KEYS[key], KEYS[key + 1]
  key = key + 2
  local first, last = run()
  if first then
    redis.call('HSET', hash, unpack(ARGV, first, last))
    -- What MongoDB does not hold must not expire; both were given their time at once.
    if redis.call('PERSIST', hash) == 1 then
      redis.call('PERSIST', recent)
    end
  elseif last == -1 then
    redis.call('DEL', hash, recent)
  end
  first, last = run()
  if first then
    redis.call('RPUSH', recent, unpack(ARGV, first, last))
  end
  local keep = tonumber(take())
  if keep == 0 then
    redis.call('DEL', recent)
  elseif keep > 0 then
    redis.call('LTRIM', recent, -keep, -1)
  end
end
for i = 13, FIXED_ARGS do
  redis.call('SET', KEYS[key], ARGV[i])
  key = key + 1
end

local backlog
if tonumber(ARGV[9]) > 0 or ARGV[11] ~= '' then
  if ARGV[11] ~= '' then
    redis.call('XADD', KEYS[2], '*', 'b', ARGV[10], 'n', ARGV[9], 'r', ARGV[11])
  else
    redis.call('XADD', KEYS[2], '*', 'b', ARGV[10], 'n', ARGV[9])
  end
  backlog = redis.call('INCRBY', KEYS[3], ARGV[9])
else
  -- Told also when nothing is added: the limit must not be forgotten over a read.
  backlog = tonumber(redis.call('GET', KEYS[3]) or '0')
end

local first, last = run()
if first then
  redis.call('HSET', KEYS[4], unpack(ARGV, first, last))
end
first, last = run()
if first then
  redis.call('HDEL', KEYS[6], unpack(ARGV, first, last))
end
local letters, dropped = tonumber(take()), 0
if letters > 0 then
  -- Named here, since most commits have no letters. The index is a sorted set with the
  -- members `<MAD> NUL <ms><n, 20 digits each> NUL <bytes>`, so each MAD's oldest is first.
  local index, sizes = KEYS[5] .. ':index', KEYS[5] .. ':bytes'
  local most, most_bytes = string.match(ARGV[8], '^(%d+),(%d+)$')
  most, most_bytes = tonumber(most), tonumber(most_bytes)
  for _ = 1, letters do
    local cause, mad, letter = take(), take(), take()
    local id = redis.call('XADD', KEYS[5], '*', 'cause', cause, 'm', mad, 'd', letter)
    local ms, n = string.match(id, '^(%d+)-(%d+)$')
    redis.call('ZADD', index, 0, mad .. '\0' .. string.rep('0', 20 - #ms) .. ms
      .. string.rep('0', 20 - #n) .. n .. '\0' .. #letter)
    local bytes = redis.call('HINCRBY', sizes, mad, #letter)
    local from, to = '[' .. mad .. '\0', '(' .. mad .. '\1'
    local count = redis.call('ZLEXCOUNT', index, from, to)
    while count > most or bytes > most_bytes and count > 1 do
      local oldest = redis.call('ZRANGEBYLEX', index, from, to, 'LIMIT', 0, 1)[1]
      local digits, size = string.match(oldest, '^[^%z]*%z(%d+)%z(%d+)$')
      local entry = string.gsub(string.sub(digits, 1, 20), '^0+(%d)', '%1') .. '-'
        .. string.gsub(string.sub(digits, 21), '^0+(%d)', '%1')
      dropped = dropped + redis.call('XDEL', KEYS[5], entry)
      redis.call('ZREM', index, oldest)
      bytes = redis.call('HINCRBY', sizes, mad, -tonumber(size))
      count = count - 1
    end
  end
end

for _ = 1, ingresses do
  local mad = take()
  first, last = run()
  if first then
    redis.call('XACK', KEYS[key], ARGV[5], unpack(ARGV, first, last))
  end
  local below = take()
  if below ~= '' then
    redis.call('XTRIM', KEYS[key], 'MINID', '~', below)
    redis.call('HSET', KEYS[7], mad, below)
  end
  key = key + 1
end

for _ = 1, replies do
  local flags, value = take(), take()
  local kept = value
  if flags == '6' or flags == '7' then
    kept = take()
  end
  if flags ~= '2' and flags ~= '6' then
    redis.call('XADD', KEYS[key], '*', 'r', value)
    redis.call('PEXPIRE', KEYS[key], ARGV[6])
  end
  if flags ~= '1' then
    redis.call('SET', KEYS[key + 1], kept, 'PX', ARGV[7])
  end
  key = key + 2
end
-- Last but for what follows, so that a woken reader finds what it was woken for.
for _ = 1, tonumber(take()) do
  redis.call('PUBLISH', take(), take())
end

if at <= #ARGV then
  local attached, fences, gateway = KEYS[key], KEYS[key + 1], KEYS[key + 2]
  for _ = 1, tonumber(take()) do
    redis.call('ZADD', attached, 0, take())
  end
  for _ = 1, tonumber(take()) do
    redis.call('ZREM', attached, take())
  end
  first, last = run()
  if first then
    redis.call('HSET', fences, unpack(ARGV, first, last))
  end
  for _ = 1, tonumber(take()) do
    first, last = run()
    redis.call('XADD', gateway, '*', unpack(ARGV, first, last))
  end
end
return {'ok', backlog, dropped}
