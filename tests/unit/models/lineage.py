"""
A small executable model of one session across failing buses.

One session, one producer, two Redis servers of which each can lose its memory's tail,
one MongoDB, an archiver beside each server; a lane may die at any time. Every step that
the product takes in one script or one MongoDB operation is one step here; everything
else may happen between two of them. `Rules` are the mends: with one
taken out, `search` finds a history that breaks a promise, with all of them it finds
none.

What the model leaves out: several sessions (claims are per session), versions and
notices (they go the way of seqs), the ledger (it goes the way of numbers).
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple


class Rules(NamedTuple):
    """
    The mends of which the model shows that each is needed.
    """

    new_lineage: bool = True  # a server that may have lost writes begins one
    claims: bool = True  # sessions are claimed in MongoDB before they are used
    gate: bool = True  # the document's update, last, finds what the plan was made for
    compares_commands: bool = True  # a duplicate seq counts only for its command
    settles_numbers: bool = True  # admission settles what MongoDB has beyond
    ancestors: bool = True  # a hot copy of a dead branch never counts
    refuses_dead: bool = True  # records of a dead branch are not drained
    repeats: bool = True  # a claim that is there already ends as the first time


class Entry(NamedTuple):
    """
    A command's effect at its place, and the lineage that it was committed under.
    """

    seq: int
    command: int
    lineage: int


class Redis(NamedTuple):
    """
    One server's memory, as far as it concerns the session.

    Attributes:
        lineage: of its hot data; 0: there is none yet.
        run: changes whenever the server may have lost writes.
        known_run: the run that `lineage` belongs to; replicated with the data.
        hot: the session's commands in the order of their seqs; None: not hot.
        hot_lineage: the lineage under which the hot copy is trusted.
        settled: the producer's numbers that count as settled.
        outbox: what is not confirmed yet.
    """

    lineage: int = 0
    run: int = 0
    known_run: int = -1
    hot: tuple[int, ...] | None = None
    hot_lineage: int = 0
    settled: frozenset[int] = frozenset()
    outbox: tuple[Entry, ...] = ()

    @property
    def is_open(self) -> bool:
        return self.known_run == self.run


class Claimed(NamedTuple):
    """
    A lineage that claimed the session, and how long it was then.
    """

    lineage: int
    length: int


class Document(NamedTuple):
    """
    The session in MongoDB: what its document says, and the entries beside it.

    Attributes:
        last_seq: entries beyond it are nobody's.
        claims: in the order of their lineages.
        entries: in the order of their seqs.
    """

    last_seq: int = 0
    claims: tuple[Claimed, ...] = ()
    entries: tuple[Entry, ...] = ()

    @property
    def lineage(self) -> int:
        return self.claims[-1].lineage if self.claims else 0

    @property
    def ancestor(self) -> int:
        return self.claims[-2].lineage if len(self.claims) > 1 else 0

    def is_dead(self, entry: Entry) -> bool:
        """
        Whether a later lineage claimed the session without this entry.
        """
        later = [one.length for one in self.claims if one.lineage > entry.lineage]

        return bool(later) and entry.seq > min(later)

    def at(self, seq: int) -> Entry | None:
        return next((one for one in self.entries if one.seq == seq), None)

    def log(self) -> tuple[int, ...]:
        return tuple(one.command for one in self.entries if one.seq <= self.last_seq)

    def put(self, entry: Entry) -> "Document":
        others = [one for one in self.entries if one.seq != entry.seq]
        return self._replace(entries=tuple(sorted([*others, entry])))


class Write(NamedTuple):
    """
    An archiver's write on its way: what it read, and which steps are behind it.
    """

    record: Entry
    inserted: bool = False
    passed: bool = False


class Claim(NamedTuple):
    """
    A session that a lane has claimed and not admitted yet.

    Attributes:
        known: an admission under this lineage came before, so the hot tier has
            settled the numbers of what MongoDB holds.
    """

    lineage: int
    log: tuple[int, ...]
    kept: bool
    known: bool = False


class State(NamedTuple):
    """
    Everything; the tuples have one place per server.

    Attributes:
        acknowledged: commands that were answered `warm`.
        disk: what a restart of the first server finds.
        sent: the highest number that the producer has sent.
        faults: how many more may happen.
        lineages: how many were begun; new ones are numbered by it.
        numbers: how many commands the producer has.
    """

    servers: tuple[Redis, Redis] = (Redis(), Redis(run=100))
    document: Document = Document()
    writes: tuple[Write | None, Write | None] = (None, None)
    claims: tuple[Claim | None, Claim | None] = (None, None)
    acknowledged: frozenset[int] = frozenset()
    disk: Redis = Redis()
    sent: int = 0
    faults: int = 2
    lineages: int = 0
    promoted: bool = False
    numbers: int = 2

    def serving(self) -> tuple[int, ...]:
        return (0, 1) if self.promoted else (0,)

    def server(self, which: int, server: Redis) -> "State":
        return self._replace(servers=placed(self.servers, which, server))

    def write(self, which: int, write: Write | None) -> "State":
        return self._replace(writes=placed(self.writes, which, write))


Step = tuple[str, State]


def placed(pair: tuple[Any, Any], which: int, what: Any) -> tuple[Any, Any]:
    return (what, pair[1]) if which == 0 else (pair[0], what)


def steps(state: State, rules: Rules) -> Iterator[Step]:
    """
    Every step that may come next.
    """
    for which in state.serving():
        yield from lane_steps(state, rules, which)
        yield from archiver_steps(state, rules, which)
    yield from faults(state)


# The lane.


def lane_steps(state: State, rules: Rules, which: int) -> Iterator[Step]:
    server = state.servers[which]
    if not server.is_open:
        yield f"open {which}", opened(state, rules, which)
        return
    trusted = server.hot is not None and server.hot_lineage == server.lineage
    if trusted:
        for number in range(1, min(state.numbers, state.sent + 1) + 1):
            if number not in server.settled:
                yield f"apply {number} at {which}", applied(state, which, number)
        if not server.outbox:
            yield f"expire {which}", state.server(which, server._replace(hot=None))
    elif is_unheard_of(state):
        # Made a moment ago: it can be nowhere else, so nobody is asked.
        born = server._replace(hot=(), hot_lineage=server.lineage)
        yield "create", state.server(which, born)
    elif state.claims[which] is None:
        yield from claim(state, rules, which)
    else:
        yield f"admit {which}", admitted(state, rules, which)
        # The next lane knows nothing of the claim: it looks and claims once more.
        claims = placed(state.claims, which, None)
        yield f"the lane of {which} dies", state._replace(claims=claims)


def is_unheard_of(state: State) -> bool:
    """
    Whether the session is about to be made, on a server that has lost nothing.
    """
    made = state.sent or state.document != Document() or any(state.claims)

    return not made and state.lineages == 1 and state.servers[0].hot is None


def opened(state: State, rules: Rules, which: int) -> State:
    server = state.servers[which]
    if server.lineage and not rules.new_lineage:
        return state.server(which, server._replace(known_run=server.run))
    number = state.lineages + 1
    fresh = server._replace(lineage=number, known_run=server.run)
    claims = placed(state.claims, which, None)

    return state.server(which, fresh)._replace(lineages=number, claims=claims)


def applied(state: State, which: int, number: int) -> State:
    server = state.servers[which]
    log = (*(server.hot or ()), number)
    entry = Entry(len(log), number, server.lineage)
    after = server._replace(
        hot=log, settled=server.settled | {number}, outbox=(*server.outbox, entry)
    )
    return state.server(which, after)._replace(sent=max(state.sent, number))


def claim(state: State, rules: Rules, which: int) -> Iterator[Step]:
    server, document = state.servers[which], state.document
    if rules.claims and document.lineage > server.lineage:
        return  # the stale side of a split: the session is unavailable here
    again = bool(document.claims) and document.lineage == server.lineage
    ancestor = document.ancestor if again and rules.repeats else document.lineage
    descends = ancestor <= server.hot_lineage or not rules.ancestors
    later = server.hot is not None and len(server.hot) >= document.last_seq
    kept = descends and later
    if rules.claims and document.lineage < server.lineage:
        length = len(server.hot or ()) if kept else document.last_seq
        claims = (*document.claims, Claimed(server.lineage, length))
        document = document._replace(claims=claims)
    known = again and document.last_seq > document.claims[-1].length
    made = Claim(server.lineage, document.log(), kept, known)
    making = placed(state.claims, which, made)
    yield f"claim {which}", state._replace(document=document, claims=making)


def admitted(state: State, rules: Rules, which: int) -> State:
    server, made = state.servers[which], state.claims[which]
    if made is None:
        raise AssertionError
    after = server._replace(hot_lineage=server.lineage)
    if not made.kept:
        after = after._replace(hot=made.log)
    if rules.settles_numbers and not made.known:
        after = after._replace(settled=after.settled | set(made.log))
    claims = placed(state.claims, which, None)

    return state.server(which, after)._replace(claims=claims)


# The archiver.


def archiver_steps(state: State, rules: Rules, which: int) -> Iterator[Step]:
    server, write = state.servers[which], state.writes[which]
    if write is None:
        if server.is_open and server.outbox:
            yield f"read {which}", state.write(which, Write(server.outbox[0]))
    elif not write.inserted:
        yield f"insert {which}", inserted(state, rules, which, write)
    elif not write.passed:
        yield f"gate {which}", passed(state, rules, which, write)
    else:
        yield f"confirm {which}", confirmed(state, which, write)


def inserted(state: State, rules: Rules, which: int, write: Write) -> State:
    document, record = state.document, write.record
    if is_refused(document, record, rules):
        return diverged(state, which, write)
    there = document.at(record.seq)
    if there is None or (there.seq > document.last_seq and document.is_dead(there)):
        document = document.put(record)
    elif there.command != record.command and rules.compares_commands:
        return diverged(state, which, write)
    done = write._replace(inserted=True)

    return state._replace(document=document).write(which, done)


def is_refused(document: Document, record: Entry, rules: Rules) -> bool:
    if record.seq > document.last_seq + 1:
        return True
    return rules.refuses_dead and document.is_dead(record)


def passed(state: State, rules: Rules, which: int, write: Write) -> State:
    document, record = state.document, write.record
    if rules.gate and is_refused(document, record, rules):
        return diverged(state, which, write)
    there = document.at(record.seq)
    changed = there is None or there.command != record.command
    if rules.gate and rules.compares_commands and changed:
        return state.write(which, write._replace(inserted=False))
    document = document._replace(last_seq=max(document.last_seq, record.seq))

    return state._replace(document=document).write(which, write._replace(passed=True))


def diverged(state: State, which: int, write: Write) -> State:
    """
    Refused for good: a dead letter, if it is still there to be buried.
    """
    server = state.servers[which]
    rest = tuple(one for one in server.outbox if one != write.record)

    return state.server(which, server._replace(outbox=rest)).write(which, None)


def confirmed(state: State, which: int, write: Write) -> State:
    server = state.servers[which]
    if write.record not in server.outbox:
        return state.write(which, None)
    rest = tuple(one for one in server.outbox if one != write.record)
    told = state.acknowledged | {write.record.command}
    after = state.server(which, server._replace(outbox=rest)).write(which, None)

    return after._replace(acknowledged=told)


# What goes wrong.


def faults(state: State) -> Iterator[Step]:
    one, other = state.servers
    if not state.promoted:
        copied = one._replace(run=other.run)
        if copied != other:
            yield "replicate", state.server(1, copied)
        if state.disk != one:
            yield "sync the disk", state._replace(disk=one)
    if not state.faults:
        return
    after = state._replace(faults=state.faults - 1)
    if not state.promoted:
        yield "promote 1", after._replace(promoted=True)
    back = state.disk._replace(run=one.run + 1)
    yield "restart 0", after.server(0, back)._replace(claims=(None, state.claims[1]))
    empty = Redis(run=one.run)
    yield "empty 0", after.server(0, empty)._replace(claims=(None, state.claims[1]))


# What must hold.


def broken(state: State) -> str:
    """
    The promise that *state* breaks; empty: none.
    """
    document = state.document
    log = document.log()
    if len(set(log)) < len(log):
        return "MongoDB holds a command twice"
    if not state.acknowledged <= set(log):
        return "a command that was answered `warm` is not in MongoDB"
    for which in state.serving():
        server = state.servers[which]
        if not is_trusted(server, document):
            continue
        hot = server.hot or ()
        if len(set(hot)) < len(hot):
            return "a command was applied twice"
        if not state.acknowledged <= set(hot):
            return "a command that was answered `warm` is not in the hot copy"
        quiet = not server.outbox and state.writes == (None, None)
        if quiet and hot != log:
            return "the hot copy and MongoDB differ, and nothing is on its way"
    return ""


def is_trusted(server: Redis, document: Document) -> bool:
    """
    Whether *server* serves the session, and nobody has claimed it since.
    """
    return (
        server.is_open
        and server.hot is not None
        and server.hot_lineage == server.lineage >= document.lineage
    )


def search(rules: Rules, begin: State, most: int) -> tuple[list[str], str, int]:
    """
    The shortest history that breaks a promise, what it breaks, and the states seen.

    Raises:
        OverflowError: there are more than *most* states.
    """
    came: dict[State, tuple[State, str] | None] = {begin: None}
    waiting = deque([begin])
    while waiting:
        state = waiting.popleft()
        if found := broken(state):
            return history(came, state), found, len(came)
        for name, after in steps(state, rules):
            if after not in came:
                came[after] = (state, name)
                waiting.append(after)
        if len(came) > most:
            raise OverflowError(f"more than {most:,} states")
    return [], "", len(came)


def history(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    names: list[str] = []
    at = came[state]
    while at is not None:
        names.append(at[1])
        at = came[at[0]]
    return names[::-1]
