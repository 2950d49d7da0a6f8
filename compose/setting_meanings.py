"""
The meaning of every setting, by topic, for docs/reference/settings.md.

One line per field of `Settings`; a test compares the names.
"""

from collections.abc import Mapping

_TEXT = """
# Bus
redis_url: the bus: redis://, rediss://, unix://, redis+sentinel://, redis+cluster://
sentinel_username: user of the Sentinels of a `redis+sentinel://` URL
sentinel_password: password of that user
partitions: fixed when the bus is set up, checked at each start
redis_unsafe: serve on a Redis that may lose sessions (no AOF, an evicting policy); \
for tests and benches
replicas_wanted: Redis replicas that must have a `replicated` write
replicated_timeout_ms: how long a `replicated` write waits for them
redis_ca: PEM file of the authority of a `rediss://` bus; empty: the system's
redis_cert: PEM file of the certificate that this process shows the bus
redis_key: PEM file of its key
plaintext: connections beyond this machine that may be in plain text: of `redis`, \
`mongo`, `s3`, `edge`; others are refused
# MAD
mad_url: the bus for MADs; `{mad}` in it stands for the name
mad: the name under which a MAD, or a command, connects
token: the token of this process
token_command: a command that prints the token, for the commands that people use
edge_url: where an edge is; set by `everbus dev` for your own programs
# Tokens and grants
jwt_secret: key of HS256 tokens
jwt_algorithm: algorithm of `EVERBUS_JWT_SECRET` or `EVERBUS_JWT_PUBLIC_KEY`
jwt_public_key: PEM of the issuer's key
jwt_keys: JSON list of `kid`, `algorithm`, `key`, for key rotation
jwt_jwks: https or file URL of the issuer's published keys
jwt_issuer: what `iss` of a token must be
jwt_audience: what `aud` of a token must be
jwt_require: optional parts that a token must have all the same
revoked_unread: what tokens are while the list of revoked ones cannot be read: `open`: \
judged by the list as last read; `closed`: refused as `unavailable` after 5 s
grant_key: key of grants, 32 bytes or more, the same in all managers and edges; \
without it, it follows from `EVERBUS_JWT_SECRET`
grant_key_previous: the former key of grants, during a rotation
grant_private_key: the Ed25519 key that seals grants, of `everbus keys pair`: of kind \
`mad` in a manager, `edge` in an edge
grant_public_keys: `<kind>:<id>:ed25519:<base64>`, separated by spaces or commas: the \
keys whose grants a manager accepts, each for its kind
grant_shared: whether grants of `EVERBUS_GRANT_KEY` still count; `false` once each \
process has keys of its own
# Encryption at rest
sealing_kek: key-encryption keys, `<name>:<32 bytes in base64>`, separated by spaces; \
one turns encryption at rest on. The first wraps data keys, the others only unwrap
sealing_kms_key: id, ARN or alias of a key of AWS KMS, instead of `EVERBUS_SEALING_KEK`
sealing_kms_region: its region; empty: as boto3 finds it
sealing_kms_endpoint: another address of KMS than AWS's own
sealing_fields: what is encrypted, of `context_summary`, `full_context`, \
`work_in_progress`, `fields`, `timeline` (entries and messages of broadcasts)
# Manager
replica: this process's name among the replicas; empty: host and pid
lane_ttl_ms: how long a silent owner keeps its lanes
lease_ttl_s: how long after its last heartbeat a MAD counts as alive; MADs send three \
heartbeats in this time
lost_after_disconnect_s: an instance of a MAD is lost so long after its connections \
closed, if none came back; 0: only its lease counts
batch_commands: commands a commit, at most
ledger_ttl_s: how long first replies are kept, for repeated commands
reply_ttl_s: how long a reply waits to be received
outbox_max_records: records a partition that MongoDB may lag behind; then writes are \
`overloaded`
doubt: sessions whose hot copy may be behind MongoDB, while MongoDB is away: `wait` \
(not available) or `serve` (served, compared later)
session_fields: `package.module:Struct`, a msgspec Struct that types `fields`
# Tiers
hot_ttl_s: how long a session stays in Redis after its last write; the same for \
managers and archiver
mongo_url: the warm tier
mongo_database: name of its database
mongo_driver: `motor`, or PyMongo's own asyncio client
warm_store: `mongo`, or `package.module:Name` of a class of your own
warm_timeout_s: deadline of each call of the warm tier
s3_endpoint: the cold tier
s3_bucket: name of its bucket; made if it may be
s3_access_key: name of its user
s3_secret_key: password of its user
cold_store: `s3`, `folder`, or `package.module:Name` of a class of your own
cold_folder: the folder, for `EVERBUS_COLD_STORE=folder`
cold_timeout_s: deadline of each call of the cold tier
price_hot_gib_month: cost of 1 GiB in Redis for a month, for `session stats`; an example
price_warm_gib_month: the same in MongoDB
price_cold_gib_month: the same in S3
mongo_ca: PEM file of the authority of MongoDB's certificates; turns TLS on
mongo_cert: PEM file of the certificate and key that this process shows MongoDB
s3_ca: PEM file of the authority of an https S3 server
# Archiver
archive_after_days: idle days before a session goes to the cold tier; a fraction is \
allowed
archive_every_s: interval between two archiving passes
retention_days: idle days before a session is deleted for good; 0: never
# Edge
edge_host: address that an edge listens on
edge_port: port that an edge listens on; 0: a free one
edge_cert: PEM file of an edge's certificate; with `edge_key` it serves HTTPS
edge_key: PEM file of its key
edge_client_ca: PEM file of the authority of clients' certificates; each client must \
then show one
edge_rate: requests a second of one principal at one edge; twice that in a burst
edge_tenant_rate: the same for a whole tenant
edge_concurrency: requests of one principal that an edge handles at once
edge_tenant_concurrency: the same for a whole tenant
edge_streams: live streams that one principal may have open at one edge
edge_drain_s: time for requests in flight when the edge stops
edge_trusted_proxies: networks of the proxies before an edge, as 10.0.0.0/8; their \
header names the client's address
edge_forwarded_header: the header that they append to: `x-forwarded-for` or `forwarded`
edge_cors_origins: origins, as https://app.example, whose pages may call an edge
edge_docs: whether an edge serves /docs and /openapi.json
edge_console: whether an edge serves the page /console
# Bounds
page_max_bytes: where a page ends: timelines, lists, differences, events
fetched_max_bytes: bytes of the lower tiers' answers that one manager holds
batch_max_bytes: where a commit ends: commands and answers
unread_max_bytes: replies that one MAD, or one caller of an edge, may leave unread on \
a partition
unread_max_items: their number
edge_connections: open connections of one edge, live streams included
edge_connections_per_address: open connections of one address at one edge
edge_bad_tokens: bad tokens of one address in 10 s; beyond it they get 429
edge_bad_messages: refused messages of one WebSocket in a minute; then it is closed
edge_head_timeout_s: time for the head of a request, and for a TLS handshake
cache_max_bytes: sessions that the lanes of one manager keep in memory
mad_rate: commands a second of one MAD that one manager takes; by default no bound
tenant_rate: the same of one tenant
dead_letters_max_items: dead letters of one MAD on one partition
dead_letters_max_bytes: their bytes
ingress_max_bytes: streams of one MAD in the lanes of one manager; beyond it the MAD \
is disabled
mad_max_connections: connections of one MAD's Redis user; beyond it likewise
turn_max_entries: entries of one turn; a turn with more is too large
revoked_max_items: tokens and subjects that are revoked on one bus
# Health and logs
health_host: address of the health port
health_port: /livez, /readyz, /startupz, /health, /metrics; 0: off, and an edge \
serves them on its own port
log_format: `auto` is console on a terminal, else json
log_level: what is logged
# Development
development: allows `EVERBUS_FAIL_POINT`
fail_point: where a test kills this process, `<point>:<n>`
"""


def _read(text: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """
    Name → meaning, and topic → names, in the order of *text*.
    """
    meanings: dict[str, str] = {}
    topics: dict[str, list[str]] = {}
    names: list[str] = []
    for line in text.strip().splitlines():
        if line.startswith("# "):
            names = topics.setdefault(line.removeprefix("# "), [])
            continue
        name, _, meaning = line.partition(": ")
        meanings[name] = meaning
        names.append(name)

    return meanings, topics


MEANINGS: Mapping[str, str]
TOPICS: Mapping[str, list[str]]
MEANINGS, TOPICS = _read(_TEXT)
