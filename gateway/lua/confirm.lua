#!lua flags=allow-oom
--[[
Confirm outbox entries that MongoDB holds: note it on the hot copies, which may
expire or go from now on, forget the entries, and give the replies held for them.
The hot copy of a session of which MongoDB refused anything never goes, unless the
copy is of a later lineage than what was refused: then it was compared with MongoDB.

May be repeated, and come late from an archiver that was paused: what is noted only
grows, a hot copy that changed since then stays as it is, and only the first XACK of
an entry counts it and gives its replies. Sessions come before entries, so that a
script that fails midway is wholly repeated with the entries that are still there.

KEYS  1 outbox  2 backlog, then S times: session hash, recent list, gone mark; then
      one reply stream per held reply, in the order of the entries, followed by the
      hash of the session that it tells of, if it does
ARGV  1 group  2 reply TTL ms  3, 4 the hash's state field of a dormant session and
      of an archived one  5 S  6 N, then
      S times: the hash's created_at field ('': it was only deleted), version
        ('': all of it was refused), last_seq, notices, TTL of the hot copy in ms,
        1 if it was archived (else 0), the mark of its deletion ('' if it was not
        deleted), the lineage of what was refused ('': nothing was; 0: unknown);
      N times: entry id, how many records it holds, reply count, then of each the
        reply, and the one to give if MongoDB refused some of the session that it
        tells of ('': it tells of none); wake-up count, then channel and message
Returns  the records still unconfirmed
Atomicity  one script, one slot.
]]
local group, reply_ttl, dormant, archived = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local at, key = 7, 3

-- The next argument.
local function take()
  at = at + 1
  return ARGV[at - 1]
end

-- Note in *field* that MongoDB holds *value*, of *now*; only ever forward. More than
-- there is was noted of an earlier life of the session.
local function note(hash, field, held, value, now)
  held = tonumber(held)
  if not held or held < tonumber(value) or held > tonumber(now) then
    redis.call('HSET', hash, field, value)
  end
end

-- Let go of a hot copy that is as MongoDB has it.
local function release(hash, recent, gone, state, ttl, is_archived)
  if state == archived and is_archived ~= '1' then
    return
  end
  if state == archived or state == dormant then
    redis.call('DEL', hash, recent)
    redis.call('SET', gone, 'elsewhere', 'PX', ttl)
    return
  end
  redis.call('PEXPIRE', hash, ttl)
  redis.call('PEXPIRE', recent, ttl)
end

for _ = 1, tonumber(ARGV[5]) do
  local hash, recent, gone = KEYS[key], KEYS[key + 1], KEYS[key + 2]
  key = key + 3
  local life, version, seq, notices = take(), take(), take(), take()
  local ttl, is_archived, mark, refused = take(), take(), take(), take()
  if mark ~= '' and redis.call('GET', gone) == mark then
    redis.call('DEL', gone)
  end
  if life ~= '' then
    local stored = redis.call('HMGET', hash, 'created_at', 'version', 'last_seq',
      'durable_version', 'durable_seq', 'state', 'notices', 'durable_notices',
      'refused', 'lineage')
    -- Not in copies that are older than notices.
    local noticed = stored[7] or '0'
    local lineage = tonumber(stored[10] or '0')
    local of_this = refused == '0' or lineage <= (tonumber(refused) or -1)
    if stored[1] == life and of_this then
      redis.call('HSET', hash, 'refused', 1)
      redis.call('PERSIST', hash)
      redis.call('PERSIST', recent)
    elseif stored[1] == life and version ~= '' then
      note(hash, 'durable_version', stored[4], version, stored[2])
      note(hash, 'durable_seq', stored[5], seq, stored[3])
      note(hash, 'durable_notices', stored[8], notices, noticed)
      if stored[9] ~= '1' and stored[2] == version and stored[3] == seq
        and noticed == notices then
        release(hash, recent, gone, stored[6], ttl, is_archived)
      end
    end
  end
end

local records, wakes = 0, {}
for _ = 1, tonumber(ARGV[6]) do
  local id, count = take(), tonumber(take())
  local first = redis.call('XACK', KEYS[1], group, id) == 1
  if first then
    records = records + count
    redis.call('XDEL', KEYS[1], id)
  end
  for _ = 1, tonumber(take()) do
    local stream, reply, otherwise = KEYS[key], take(), take()
    if otherwise ~= '' then
      key = key + 1
      if redis.call('HGET', KEYS[key], 'refused') == '1' then
        reply = otherwise
      end
    end
    if first then
      redis.call('XADD', stream, '*', 'r', reply)
      redis.call('PEXPIRE', stream, reply_ttl)
    end
    key = key + 1
  end
  for _ = 1, tonumber(take()) do
    local channel, message = take(), take()
    if first then
      wakes[#wakes + 1] = {channel, message}
    end
  end
end

local backlog = redis.call('DECRBY', KEYS[2], records)
-- Entries that somebody trimmed took their counts with them; nothing is nothing.
if backlog ~= 0 and redis.call('XLEN', KEYS[1]) == 0 then
  redis.call('SET', KEYS[2], 0)
  backlog = 0
end
-- Last, so that a woken reader finds what it was woken for.
for _, wake in ipairs(wakes) do
  redis.call('PUBLISH', wake[1], wake[2])
end
return backlog
