"""
Log events of managers: lanes, presence, identity, tiers, health.

A paragraph for each: `name: meaning | usual reason | what to do`.
"""

LANE_EVENTS = """
answer.failed: A read of a session failed by a defect; its caller gets an error. | A
defect of everbus; the traceback is in the log. | Report the traceback.

bus.emptied: Redis had lost all keys; the manager puts back what every bus has. | A
restart without its append-only file, or FLUSHALL. | everbus doctor (`lost_writes`,
`persistence`), then everbus verify --all.

command.buried: A command became a dead letter. | The field `cause` says why. | everbus
explain CAUSE, then everbus dead list.

command.failed: A command failed by a defect; it is tried again, then becomes a dead
letter. | A defect of everbus; the traceback is in the log. | Report the traceback;
redrive the letter when it is mended.

entries.taken: Somebody else read commands with the managers' group; the lane took them
back and begins anew, in order. | XREADGROUP by hand with another consumer's name, or
XGROUP SETID. | Find who does; read a stream by hand with XRANGE, which takes nothing.

entry.trimmed: Somebody removed a command from its stream before it was settled: it is
lost. | XTRIM or XDEL on eb:{*}:in:*, or a failover that lost writes. | Find who trims;
only everbus may.

group.created: A lane made the consumer group of an ingress. As an error: the group was
lost, and entries from the last trim point on are read again. | A new MAD (debug), or
lost writes of the bus (error). | As an error: everbus doctor, `lost_writes`.

lane.deaf: The exchanges of a lane do not complete while the manager's own do; the lane
begins anew. | A connection that hangs. | See the network between manager and bus if it
happens again.

lane.disturbed: A lane begins anew and replays what is pending; nothing is lost. | See
`cause`: unavailable (the bus was away), lineage (it may have lost writes), nogroup (a
group is gone), noscript or stale. | Nothing if it passes; nogroup: everbus doctor.

lane.failed: A lane met a defect; it begins anew and replays what is pending. | A defect
of everbus; the traceback is in the log. | Report the traceback.

lane.not_released: A lane could not be given back at the end; another manager takes it
after the lane TTL. | The bus was away at the stop. | Nothing.

lane.replays: A new owner settles again what its predecessor had read. | A start or a
takeover. | Nothing.

lane.superseded: Another manager owns the lane; this one commits nothing more in it. |
This process was paused for longer than EVERBUS_LANE_TTL_MS. | See CPU and swapping of
its host if it happens again.

lane.taken: This manager serves the lane from now on. | A start, a new balance, or a
manager that ended. | Nothing.

letters.dropped: The oldest dead letters of a lane were dropped to keep its bound. |
Nobody redrives or drops them, or a MAD floods the bus. | everbus dead list, then
redrive or drop.

lineage.began: The bus may have lost writes, so its hot copies are compared with
MongoDB. | A restart or a failover of Redis. | everbus doctor, `lost_writes`; everbus
verify --all.

lineage.stale_side: A session was claimed by another bus later; here it is refused. |
Two buses are served with one MongoDB, as after a split. | Stop the managers of the
older bus, or restart it.

load.failed: Sessions could not be loaded from a tier by a defect; their callers get an
error. | A defect, or an unexpected answer of a driver; the traceback is in the log. |
Report the traceback.

numbers.dropped: The oldest numbers that a producer skipped were given up, since they
never arrived. | A MAD skipped numbers too often: lost or foreign entries. | See whether
commands of that MAD are missing.

producer.undecodable: The record of a producer's numbers cannot be read: its writes are
refused, everything else goes on. | Somebody wrote to `key`, or the bytes are damaged. |
Put the record back, or restart that MAD: a new instance has a record of its own.

producer.waits: Commands of one producer wait until gaps in its numbers are closed. |
Its commands arrive out of order, or some were lost. | Nothing if it passes; else see
`entry.trimmed`.

remnant.removed: A record in MongoDB of a branch that does not count was removed, to
make room for the one that does. | The bus lost writes that MongoDB had. | Nothing; see
`lost_writes` in everbus doctor.

replica.bus_away: The manager cannot reach the bus; it tries again. | Redis is down,
restarts, or cannot be reached. | See whether Redis runs and is reached.

replica.died: A manager fell silent; the others take its lanes. | It was killed, or its
host is gone. | See that manager's log; start another.

replica.started: The manager serves from now on. | A start. | Nothing.

replica.stopped: The manager has handed over and ended. | SIGTERM or Ctrl-C. | Nothing.

replies.unread: An instance does not read its replies; its requests are `overloaded`
until it does. | The MAD hangs, or is gone. | See whether that MAD works.

session.doubtful: The hot copy of a session may be behind MongoDB, and MongoDB is away.
| The bus may have lost writes, and MongoDB does not answer. | Bring MongoDB back;
EVERBUS_DOUBT decides until then.

session.replaced: Redis and MongoDB had different states of a session; MongoDB's counts.
| The bus lost writes. | everbus verify --all; the fields name both states.
"""

PRESENCE_EVENTS = """
bus.clock_set: The clock of the bus was set, by `step_ms`; leases were moved with it. |
Somebody set the clock, or NTP stepped it. | Slew the clock of Redis's host instead.

heartbeat.refused: Heartbeats of a MAD are refused: see `problem`. | More instances
than the limit, or a client that sends garbage. | End instances that are not needed.

losses.untold: Some sessions have not been told of a loss yet; it is tried again. | A
lane or the bus is away: see `error`. | Nothing if it passes; else everbus doctor.

mad.disabled: A MAD was above its quota, so its Redis user was disabled. | It floods
the bus, or no manager settles its commands. | Find out why; then everbus mads enable
NAME.

mad.lost: An instance of a MAD was declared lost; its sessions are told. | No heartbeat
within the lease, or its connections closed. | See why the MAD ended; everbus mads list.

mad.not_disabled: A MAD above its quota could not be disabled. | The managers lack the
right, or the bus is away. | Give managers the rights of everbus acl --role manager.

mad.over_quota: A MAD is above its quota, and has no user that could be disabled. | It
uses the bus by a shared user. | Give it a user: everbus mads add NAME.

presence.disturbed: The lane of heartbeats begins anew. | The bus was away or lost
writes: see `cause`. | Nothing if it passes.

presence.failed: The lane of heartbeats met a defect; it begins anew. | A defect of
everbus; the traceback is in the log. | Report the traceback.

presence.gap: Nobody watched the heartbeats for a while; every lease gets a whole TTL
more. | Managers or the bus were away. | Nothing.

quotas.not_enforced: MADs above a quota cannot be disabled. | The managers' Redis user
lacks rights. | Give them those of everbus acl --role manager.

quotas.not_measured: The quotas could not be measured this time. | The bus was away. |
Nothing if it passes.
"""

IDENTITY_EVENTS = """
grants.refused: The bus refuses the answers to requests for grants. | The managers'
user lacks rights. | Give managers the rights of everbus acl --role manager.

grants.unsaid: Answers to requests for grants could not be sent; MADs repeat their
requests. | The bus was away. | Nothing if it passes.

jwks.changed: The keys for tokens have changed. | The issuer rotated them. | Nothing.

jwks.key_refused: A key of the JWK Set is not used: see `reason`. | A doubled kid, or a
type or size that everbus refuses. | Mend the issuer's JWK Set.

jwks.unread: The JWK Set could not be read; the keys known before count. | The issuer
is away, or the file is damaged. | See whether the source in EVERBUS_JWT_JWKS answers.

key.made: A data key was made for a tenant. | The first sealed value, or a rotation. |
Nothing.

key.unreadable: A data key cannot be unwrapped: what it sealed cannot be read. | Its
key-encryption key is not among the settings. | Give managers that key again; see
everbus keys list.

keys.not_refreshed: The data keys could not be read again; those known count. | The bus
was away. | Nothing if it passes.

keys.warm_store_away: MongoDB's copy of the data keys could not be read; Redis's
counts. | MongoDB is away. | See whether MongoDB runs.

revocations.changed: The list of revoked tokens is another one; it counts from now on. |
everbus token revoke. | Nothing.

revocations.read_again: The list of revoked tokens can be read again. | The bus is
back. | Nothing.

revocations.restored: The bus had lost revocations; the manager wrote them again. | A
failover, or a bus that was emptied. | everbus token revoked, to see that all are there.

revocations.too_many: The list has more revocations than this process may keep; those
that end first are left out. | EVERBUS_REVOKED_MAX_ITEMS differs between processes. |
Set the same bound everywhere; revoke subjects instead of single tokens.

revocations.undecodable: An entry of the list of revoked tokens does not decode; it is
left out. | Somebody wrote eb:revoked by hand. | everbus token revoke, once more.

revocations.unread: The list of revoked tokens cannot be read: see `reason`. By
EVERBUS_REVOKED_UNREAD tokens are judged by the list as last read, or refused after 5
s. | The bus is away, or its user may not read eb:revoked. | See whether the bus runs;
give the user the rights of `everbus acl --role edge` or `manager`.

sealed.refused: A sealed value could not be opened: it is treated as unreadable. | The
value is damaged or of another place, or its key is missing. | everbus keys list; then
everbus verify.

token.failed: A token could not be judged, by a defect; it is refused. | A defect of
everbus. | Report it with the name in `error`.

token.refused: A token was refused: see `reason` or `code`. | It is expired, forged, or
for another audience. | Give the MAD or client a valid token.

token.unheard: Requests for grants were dropped. | Too many at once, or too large: see
`cause`. | See which MADs connect all the time.
"""

TIER_EVENTS = """
breaker.closed: A tier answers again. | MongoDB or S3 is back. | Nothing.

breaker.opened: A tier failed repeatedly; it is left alone for `open_s` seconds. |
MongoDB or S3 is down, slow, or refuses: see `reason`. | See whether it runs and is
reached; it is probed by itself.

checkpoint.corrupted: A checkpoint does not give the state that was stored. | Records
in MongoDB were changed or removed. | everbus verify; restore MongoDB from a backup.

cold.corrupted: An object in S3 is not what was put there; it is not served. | It was
changed, replaced or cut. | Put it back from a backup or an older version of the bucket.

session.rehydrated: A session came back from S3 into MongoDB. | Somebody used an
archived session. | Nothing.
"""

HEALTH_EVENTS = """
check.failed: A check of a process's health met a defect; it counts as failed. | A
defect of everbus; the traceback is in the log. | Report the traceback.

health.worse: An indicator became worse. | The fields `indicator` and `value` say which.
| Its `remedy`; everbus explain INDICATOR.

status.failed: The report of a process met a defect; the next one is tried. | A defect
of everbus; the traceback is in the log. | Report the traceback.

status.not_told: A process could not report its status. | The bus is away. | Nothing if
it passes.

status.not_withdrawn: A process ended and could not remove its status; it counts as
silent after 20 s. | The bus was away at the stop. | Nothing.

tier.away: A tier did not answer the edge's check. | MongoDB or S3 is away: see
`reason`. | See whether it runs and is reached.
"""

GATEWAY_EVENTS = (
    LANE_EVENTS + PRESENCE_EVENTS + IDENTITY_EVENTS + TIER_EVENTS + HEALTH_EVENTS
)
