"""
Log events of edges and archivers, and of the start of every process.

A paragraph for each: `name: meaning | usual reason | what to do`.
"""

EDGE_EVENTS = """
bus.connected: The edge is connected to the bus. | Its start, or the end of an outage
at the start. | Nothing.

bus.not_connected: The edge started without the bus; it reads from MongoDB until then.
| The bus or all managers are away. | See whether Redis and a manager run.

edge.draining: The edge ends; its streams are told where to resume. | SIGTERM or
Ctrl-C. | Nothing.

edge.ready: The edge serves at `url`. | A start. | Nothing.

edge.stopped: The edge has ended. | SIGTERM or Ctrl-C. | Nothing.

request.answered: A request was answered: see `status`. | A client of the edge. |
Nothing; with a 5xx see the other events of this request.

request.failed: A request met a defect, or an error of everbus; its client got a 5xx. |
See `code`, or the traceback in the log. | everbus explain CODE; report a traceback.

stream.broken: A live stream ended by a defect; its client resumes. | A defect of
everbus; the traceback is in the log. | Report the traceback.

stream.ended: A live stream ended; `code` says why. | The client left, its token ended,
or the edge stops. | Nothing.

stream.opened: A client follows a session. | A request for live updates. | Nothing.
"""

ARCHIVER_EVENTS = """
archive.not_removed: The archive of a deleted session cannot be removed; it stays in S3.
| The object is not what was put there. | Look at the object; remove it by hand.

archive.removed: The archive of a deleted session was removed. | A deletion. | Nothing.

archiver.ready: The archiver runs; it drains while it holds the lease. | A start. |
Nothing.

commands.broken: The archiver's way to the managers failed by a defect. | A defect of
everbus; the traceback is in the log. | Restart the archiver; report the traceback.

drain.group_lost: The group of the outboxes is gone. | Redis lost its data. | everbus
doctor, `lost_writes`; everbus verify --all.

drain.recovered: The drain works again. | What it waited for is back. | Nothing.

drain.superseded: Another archiver drains; this one stands by. | It was paused for
longer than its lease. | See CPU and swapping of its host if it happens again.

drain.waits: Nothing reached MongoDB; it is tried again after `wait_s`. | MongoDB or the
bus is away: see `error`. | See whether they run and are reached.

lease.lost: The archiver's lease is over; another one may drain. | It was paused or
could not reach the bus. | Nothing if it passes.

lease.not_kept: The lease could not be renewed; it expires by itself. | The bus is
away. | See whether Redis runs and is reached.

lease.not_released: The lease could not be given back at the end; it expires. | The bus
was away at the stop. | Nothing.

record.buried: MongoDB refuses a committed record, so it is a dead letter. | `cause`:
diverged, constraint; or it cannot be decoded. | everbus dead list; everbus explain
CAUSE.

session.archived: An idle session was moved to S3. | EVERBUS_ARCHIVE_AFTER_DAYS. |
Nothing.

session.not_archived: A session stays in MongoDB: see `code`. | It was used meanwhile.
| Nothing: the next pass looks again.

session.not_finished: A move of a session keeps its mark for the next run. | The
session is in constant use. | Nothing.

session.not_purged: Archived entries stay in MongoDB, since the archive is damaged. |
The object in S3 is not what was put there. | Put it back from a backup of the bucket.

session.not_restored: The entries of a returned session cannot be brought back. | The
object in S3 is not what was put there. | Put it back from a backup of the bucket.

session.not_retired: A session was not deleted by age: see `code`. | It was used
meanwhile. | Nothing: the next pass looks again.

session.retired: A session was deleted by age. | EVERBUS_RETENTION_DAYS. | Nothing.

work.failed: A job of the archiver failed; its next run tries again. | A tier or the
bus is away: see `code`. | everbus explain CODE.
"""

START_EVENTS = """
bus.unchecked: A node of the bus could not be checked at the start. | It is away. | See
whether that node runs.

bus.unsafe: The bus may lose sessions, and EVERBUS_REDIS_UNSAFE allows it. | A setting
of Redis: see `setting`. | Its `remedy`; never in production.

bus.weak: A setting of the bus weakens a promise. | See `setting`. | Its `remedy`.

manager.ready: The manager takes lanes from now on. | A start. | Nothing.

probes.ready: The process answers probes and Prometheus. | EVERBUS_HEALTH_PORT. |
Nothing.

role.broken: A task of the process failed by a defect; the process ends in order. | A
defect of everbus; the traceback is in the log. | Report the traceback; what supervises
the process starts it again.

spans.not_sent: Spans are asked for, and their exporter is not installed. |
OTEL_EXPORTER_OTLP_ENDPOINT is set. | pip install 'everbus[otel]'

tls.unverified: A connection is encrypted, and its server is not verified. | An option
in the URL: see `option`. | Remove it, and name the authority by EVERBUS_…_CA.
"""

PROCESS_EVENTS = EDGE_EVENTS + ARCHIVER_EVENTS + START_EVENTS
