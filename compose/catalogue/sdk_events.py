"""
Log events of the SDK, in the process of a MAD.

A paragraph for each: `name: meaning | usual reason | what to do`.
"""

SDK_EVENTS = """
appends.lost: The block ended before some appends were on the bus, and there is no
spool: they are gone. | The bus was away while the MAD ended. | Give `connect` a
`spool`, and send the lost appends again.

appends.spooled: The block ended before some appends were on the bus; the spool keeps
them. | The bus was away or slow while the MAD ended. | Nothing: the next start with
this spool sends them.

appends.unsent: The process exits, and some appends are not on the bus. | It ended
without leaving the block of `connect`. | Leave the block, call `flush`, or use a
`spool`.

appends.unsettled: The block ended, and managers had not told in time that all appends
are settled. | Managers are slow or away; the appends are on the bus. | Nothing if
managers run; to be sure, `flush` with a longer timeout before the end.

bus.away: The bus does not answer; commands wait in memory or in the spool. In an edge:
requests are answered from MongoDB, or refused. | The server is down, restarts, or
cannot be reached. | See whether Redis runs and is reached; then it goes on by itself.

bus.back: The bus answers again, after `bus.away`. | Its server or the network is back.
| Nothing.

bus.not_met: The MAD started without the bus, on what its spool knows of it. | The bus
is away at the start. | Nothing: appends go into the spool until the bus is there.

client.broken: The connection's own task failed by a defect; every call fails from now
on. | A defect of everbus; the traceback is in the log. | `connect` anew, and report
the traceback.

command.refused: A command that nobody waited for was refused for good. | The field
`code` says why. | everbus explain CODE; `on_refused` and `flush` tell it to the MAD.

commands.doubtful: Commands were put aside: whether they took effect is not known, so
they are not sent again. | They lay unsent beyond the horizon, or were damaged on disk;
see `cause`. | Compare with the session's timeline; the field `look` shows how to read
them.

commands.sent_again: Commands that are not settled were sent again; each takes effect
once. | The bus may have lost writes: a restart or a failover. | Nothing here; see
`lost_writes` in everbus doctor.

grant.awaited: The MAD started without a grant for its commands; they wait for it. | No
manager answered in time. | Start a manager (everbus manager), or see whether one is
reached.

grant.not_renewed: The grant could not be renewed; the present one counts until its
end. | No manager answered, or the token is refused: see `error`. | Give a valid token,
or start a manager.

heartbeats.delayed: A heartbeat could not be sent; it is tried again. | The bus was
away for a moment. | Nothing, unless it lasts: beyond the lease the instance is lost.

heartbeats.refused: The bus refuses heartbeats: the instance will be declared lost. |
The Redis user of the MAD lacks rights or was disabled. | everbus mads list, then
`mads add` to renew its rights, or `mads enable`.

heartbeats.resumed: Heartbeats are sent again. | The bus is back. | Nothing.

instance.lost: This instance was declared lost; it joins again under a new epoch. | No
heartbeat arrived within the lease: a pause, overload, or an outage. | See why the
process stood still; `on_lost` tells it to the MAD.

instance.superseded: A manager tells that this epoch of the instance is over. | As
`instance.lost`, which follows. | See `instance.lost`.

mad.not_registered: The MAD could not be entered in the list of MADs now. | The bus
was not available while the MAD connected. | Nothing if it is listed already (everbus
mads list); else connect again.

mad.not_registered: The list of MADs could not be read or written with a heartbeat,
which counts all the same; the next one tries again. | The list's node is away or full,
on a Cluster. | Nothing if it passes.

mad.registered_again: The bus had forgotten the MAD, which entered itself again. | The
bus was emptied while no manager lived. | everbus doctor (`lost_writes`, `persistence`),
then everbus verify --all.

mad.registered_by_operator: The MAD's user may not register itself, as intended with
ACLs. | `everbus mads add` has done it. | Nothing.

on_lost.failed: The MAD's own function `on_lost` raised an error. | A defect of that
function; its traceback is in the log. | Mend the function; everbus goes on.

on_refused.failed: The MAD's own function `on_refused` raised an error. | A defect of
that function; its traceback is in the log. | Mend the function; everbus goes on.

publisher.refused: The bus refuses commands of this MAD; all that wait are refused. |
The Redis user lacks rights, was disabled, or its password changed. | everbus mads
list; then `mads enable`, or `mads add` and connect with the new URL.

publisher.waits: A write of commands failed; they are kept and sent again. | The bus is
away or full: see `error`. | Nothing if it passes; else see whether the bus runs.

push.garbled: A pushed event could not be decoded; it is asked for instead. | Managers
of a newer version. | Upgrade the SDK when convenient.

replies.delayed: Replies could not be fetched; it is tried again. | The bus was away
for a moment. | Nothing if it passes.

settled.not_answered: A question about settled commands had no answer; it is asked
again. | Managers are busy or away. | Nothing if it passes.

settled.unknown: The managers do not know the question about settled commands. |
Managers of an older version. | Upgrade the managers.

spool.inherited: The spool has commands of an earlier process; they are sent first. |
That process ended before they were on the bus. | Nothing.

spool.not_cleared: Commands that are settled could not be deleted from the spool; it is
tried again. | The disk is full or slow. | Make room on the spool's disk.

subscription.message_failed: A message of a channel met a defect; the subscription goes
on. | A defect of everbus; the traceback is in the log. | Report the traceback.

subscription.unpinged: The user may not send PING on this connection; it lives all the
same. | Rights of an earlier version. | Renew them: everbus mads add NAME.

token.unanswered: Managers received the token and did not answer in time; it is sent
again. | They are busy, or their clocks or keys differ. | Nothing if it passes; else
see the managers' logs.

wake.garbled: A message on the MAD's wake channel could not be decoded; the sweep finds
the replies. | Another program publishes there. | Find out who publishes on eb:wake:*.

watch.delayed: A watch could not get its events; it goes on later, without a gap. |
Managers or the bus were away or overloaded: see `code`. | Nothing if it passes.
"""
