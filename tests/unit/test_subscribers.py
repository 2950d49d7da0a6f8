"""
Pushes: a commit tells those who watch what it does, and nobody else anything.
"""

import time

import msgspec
import pytest

from everbus.bus.errors import Overloaded
from everbus.bus.events import SessionEvent
from everbus.bus.keys import EDGE, wake
from everbus.bus.messages import Reply, pack, pack_envelope
from everbus.gateway.identity.grants import Grants, derived_key
from everbus.gateway.identity.policy import Policy
from everbus.gateway.identity.principal import Principal
from everbus.gateway.lane import subscribers
from everbus.gateway.lane.commit import Batch, BatchLimits
from everbus.gateway.lane.decision import Decider, Decision
from everbus.gateway.lane.delivery import KINDS, Delivery, Now, received_in
from everbus.gateway.lane.subscribers import (
    COMMIT_BYTES,
    PUSH_BYTES,
    WATCHED_S,
    Subscribers,
)
from everbus.handlers.commands import WatchSession
from tests.builders import NOW, a_session, an_envelope

SECRET = "a-secret-of-at-least-thirty-two-bytes"
GRANTS = Grants(derived_key(SECRET))
START_MS = 1_790_000_000_000
BOB = wake("bob", "b1")


class ALane:
    """
    The decider of one lane without its bus.
    """

    def __init__(self):
        self.now_s, self.begun_s = 1_000.0, time.time()
        self.now = Now.at(START_MS)
        self.decider = Decider(GRANTS, Policy(KINDS))
        self.decider.subscribers = Subscribers(
            self.decider.may_watch, clock=lambda: self.now_s
        )
        self.decider.cache.sessions["s1"] = a_session(
            acl=("ann", "bob", "cyd"), created_at=NOW
        )
        self.n = 0
        self.begin()

    def begin(self):
        self.batch = Batch(0, BatchLimits(), self.now, self.decider.subscribers)

    def decide(self, kind, body, *, mad="ann", instance="", role="mad", **token):
        """
        Decide one command in the present batch.
        """
        self.n += 1
        instance = instance or f"{mad[0]}1"
        name, reply = token.pop("name", mad), token.pop("reply", True)
        principal = Principal(name, role, self.begun_s + token.pop("ttl_s", 600))
        envelope = an_envelope(
            kind, body=body, id=f"{instance}.0.{self.n}", reply=reply, grant=b""
        )
        if mad == EDGE:
            envelope = msgspec.structs.replace(envelope, session="s1")
            grant = GRANTS.for_command(principal, envelope)
        else:
            grant = GRANTS.for_instance(principal, mad, instance)
        packed = pack_envelope(msgspec.structs.replace(envelope, grant=grant))
        [delivery] = received_in(mad, f"{START_MS + self.n}-0", [b"c", packed], 0, 1)
        self.now = self.batch.now = Now.at(int(time.time() * 1000) + self.n)
        self.decider.cache.observe(delivery)
        return delivery, self.decider.decide(delivery, self.batch)

    def watch(self, mad="bob", **how):
        return self.decide(
            "session.watch", {"after": None, "push": True}, mad=mad, **how
        )

    def append(self, text="hi", **how):
        return self.decide("timeline.append", {"entry": text}, **how)

    def update(self, patch, **how):
        return self.decide("session.update", {"patch": patch}, **how)

    def commit(self):
        """
        What the batch says on which channels; a new one begins.
        """
        arguments = self.batch.command("owner")
        said: dict[str, list[object]] = {}
        for place, one in enumerate(arguments):
            if isinstance(one, str) and one.startswith("eb:wake:"):
                said[one] = msgspec.msgpack.decode(arguments[place + 1])
        self.begin()
        return said

    def pushed(self):
        """
        Channel → the pushes on it.
        """
        found = {
            channel: [one for one in told if isinstance(one, dict)]
            for channel, told in self.commit().items()
        }
        return {channel: told for channel, told in found.items() if told}


@pytest.fixture
def lane():
    return ALane()


def events_in(told):
    [one] = told
    assert one["session"] == "s1"
    return msgspec.convert(one["events"], list[SessionEvent])


def codes_in(told):
    return [msgspec.msgpack.decode(r, type=Reply).code for r in told]


def test_whoever_watches_is_told_everything_with_its_content(lane):
    lane.watch()
    lane.commit()

    lane.append({"text": "hi"})
    lane.update({"tags": ["sea"]})
    lane.decide("session.broadcast", {"message": {"typing": True}})
    lane.decide("checkpoint.create", {"name": "v1"})
    pushed = lane.pushed()

    assert pushed.keys() == {BOB}
    appended, updated, said, kept = events_in(pushed[BOB])
    assert (appended.kind, appended.entry, appended.seq) == (
        *("timeline.appended", {"text": "hi"}),
        1,
    )
    assert (updated.kind, updated.patch) == ("session.updated", {"tags": ["sea"]})
    assert (said.kind, said.message) == ("session.broadcast", {"typing": True})
    assert kept.kind == "checkpoint.created"
    numbers = [event.position.number for event in (appended, updated, said, kept)]
    assert numbers == [2, 3, 4, 5]
    assert {e.mad for e in (appended, updated, said, kept)} == {"ann"}


def test_the_reply_comes_before_the_push_on_the_same_channel(lane):
    """
    So who writes and watches has its reply first, by the same message.
    """
    lane.watch("ann")
    lane.commit()

    lane.append()
    [(channel, (reply, push))] = lane.commit().items()

    assert channel == wake("ann", "a1")
    assert codes_in([reply]) == ["ok"]
    assert len(events_in([push])) == 1


def test_nothing_is_packed_where_nobody_watches(lane, monkeypatch):
    def never(*_):
        raise AssertionError("packed")

    monkeypatch.setattr(subscribers, "_packed", never)
    monkeypatch.setattr(subscribers.Subscribers, "pushes", never)
    lane.append()

    assert lane.pushed() == {}


def test_reading_alone_pushes_nothing(lane):
    lane.watch()
    lane.commit()

    lane.decide("session.get", {})

    assert lane.pushed() == {}


def test_another_session_is_not_told_of(lane):
    lane.decider.cache.sessions["s2"] = a_session(id="s2", owner_id="ann")
    lane.watch()
    lane.commit()
    grant = GRANTS.for_instance(Principal("ann", "mad", time.time() + 60), "ann", "a1")
    envelope = an_envelope(
        "timeline.append", session="s2", id="a1.0.99", body={"entry": 1}, grant=grant
    )
    [delivery] = received_in("ann", "1-0", [b"c", pack_envelope(envelope)], 0, 1)
    lane.decider.cache.observe(delivery)
    assert lane.decider.decide(delivery, lane.batch) is Decision.SETTLED

    assert lane.pushed() == {}


def test_what_an_earlier_command_of_the_batch_did_is_told_as_well(lane):
    """
    Its watcher may have been answered as of before; the number sorts it out.
    """
    lane.append()
    lane.watch()

    assert [e.seq for e in events_in(lane.pushed()[BOB])] == [1]


def test_who_wants_something_from_below_is_told_from_then_on(lane):
    lane.decide("session.watch", {"after": "0", "push": True}, mad="bob")

    lane.append()

    assert lane.pushed().keys() == {BOB}


@pytest.mark.parametrize(
    ("body", "how"),
    [
        ({"after": None, "push": False}, {"mad": "bob"}),
        ({"after": None, "push": True}, {"mad": "eve"}),
        ({"after": "nonsense", "push": True}, {"mad": "bob"}),
        ({"after": None, "push": True, "limit": 0}, {"mad": "bob"}),
    ],
)
def test_who_does_not_want_it_or_is_refused_is_told_nothing(lane, body, how):
    lane.decide("session.watch", body, **how)
    lane.append()

    assert lane.pushed() == {}
    assert len(lane.decider.subscribers) == 0


def test_after_fifteen_seconds_without_a_question_nothing_is_pushed(lane):
    lane.watch()
    lane.now_s += WATCHED_S - 0.1
    lane.append()
    assert lane.pushed().keys() == {BOB}

    lane.now_s += 0.2
    lane.append()
    assert lane.pushed() == {}
    lane.now_s += WATCHED_S
    lane.append()
    lane.pushed()
    assert len(lane.decider.subscribers) == 0
    assert not lane.decider.subscribers


def test_asking_again_renews_it(lane):
    lane.watch()
    lane.now_s += WATCHED_S - 1
    lane.watch()
    lane.now_s += WATCHED_S - 1
    lane.append()

    assert lane.pushed().keys() == {BOB}
    assert len(lane.decider.subscribers) == 1


def test_no_push_outlasts_the_right_to_ask(lane):
    lane.watch(ttl_s=3)
    lane.now_s += 5
    lane.append()

    assert lane.pushed() == {}


def test_who_is_put_out_of_the_acl_is_told_to_ask_and_no_more(lane):
    """
    Neither what the same commit did, nor anything after.
    """
    lane.watch()
    lane.watch("cyd")
    lane.commit()

    lane.append("before")
    lane.update({"acl": ["ann", "cyd"]}, name="ada", role="admin")
    lane.append("secret")
    pushed = lane.pushed()
    lane.append("more")
    later = lane.pushed()

    assert events_in(pushed[BOB]) == []
    assert len(events_in(pushed[wake("cyd", "c1")])) == 3
    assert later.keys() == {wake("cyd", "c1")}


@pytest.mark.parametrize("role", ["user", "mad"])
def test_at_the_edge_one_who_may_no_longer_takes_nothing_from_the_others(lane, role):
    lane.decider.cache.sessions["s1"] = a_session(acl=("ann", "bob", "cyd"))
    for name in ("bob", "cyd"):
        lane.watch(EDGE, name=name, role=role, instance="e1")
    lane.commit()

    lane.update({"acl": ["ann", "cyd"]}, name="ada", role="admin")
    pushed = lane.pushed()

    assert len(events_in(pushed[wake(EDGE, "e1")])) == 1
    assert len(lane.decider.subscribers) == 1


def test_the_end_of_a_session_is_told_with_what_was_said_before(lane):
    lane.watch()
    lane.commit()

    lane.append("last words")
    lane.decide("session.delete", {}, name="root", role="admin")
    said, ended = events_in(lane.pushed()[BOB])

    assert said.entry == "last words"
    assert ended.kind == "session.deleted"
    assert len(lane.decider.subscribers) == 0


def test_of_a_session_made_again_under_the_id_nothing_is_told(lane):
    """
    It is somebody else's, whoever watched the first one.
    """
    lane.watch()
    lane.commit()

    lane.decide("session.delete", {}, name="root", role="admin")
    lane.decide("session.create", {"user_id": "eve"}, name="root", role="admin")
    lane.append("secret", name="root", role="admin")
    first = lane.pushed()
    lane.append("secret", name="root", role="admin")

    assert [e.kind for e in events_in(first[BOB])] == ["session.deleted"]
    assert lane.pushed() == {}


def test_where_the_acl_changes_just_before_the_end_all_are_told_to_ask(lane):
    lane.watch()
    lane.commit()

    lane.update({"acl": ["ann"]}, name="ada", role="admin")
    lane.decide("session.delete", {}, name="root", role="admin")

    assert events_in(lane.pushed()[BOB]) == []


def test_a_session_that_was_just_made_is_watched_from_its_first_event(lane):
    lane.decider.cache.sessions["s1"] = None

    lane.decide("session.create", {"user_id": "bob"}, name="root", role="admin")
    lane.watch()
    [made] = events_in(lane.pushed()[BOB])

    assert (made.kind, made.position.number) == ("session.created", 1)


def test_what_is_too_large_is_told_without_its_content(lane):
    lane.watch()
    lane.commit()

    lane.append("x" * PUSH_BYTES)

    assert events_in(lane.pushed()[BOB]) == []


def test_one_commit_pushes_no_more_than_so_much(lane):
    """
    However many watch: a commit is one message to the server, and one of its steps.
    """
    count = 2 * COMMIT_BYTES // PUSH_BYTES
    for n in range(count):
        lane.watch(instance=f"b{n}")
    lane.commit()

    lane.append("x" * (PUSH_BYTES - 1_000))
    told = [events_in(one) for one in lane.pushed().values()]

    assert len(told) == count
    assert all(events == [] for events in told)


def test_too_many_watchers_are_refused(lane, monkeypatch):
    monkeypatch.setattr(subscribers, "MAX_INSTANCES", 2)
    lane.watch(instance="b1")
    lane.watch(instance="b2")
    lane.watch(instance="b2")
    lane.commit()

    lane.watch(instance="b3")

    [[reply]] = [told for c, told in lane.commit().items() if c.endswith("b3")]
    assert codes_in([reply]) == ["overloaded"]


def test_a_lane_has_so_many_watchers_at_most(monkeypatch):
    monkeypatch.setattr(subscribers, "MAX_SUBSCRIBERS", 2)
    made = Subscribers(lambda *_: True)
    wanted = WatchSession(push=True)
    for n in range(2):
        made.watch(_asking(f"s{n}"), wanted, 0)

    with pytest.raises(Overloaded):
        made.watch(_asking("s2"), wanted, 0)
    # Asking again is no more.
    made.watch(_asking("s1"), wanted, 0)
    assert len(made) == 2


def _asking(session):
    [delivery] = received_in(
        *("bob", "1-0"),
        [b"c", pack(an_envelope("session.watch", session=session, id="b1.0.1"))],
        *(0, 1),
    )
    assert isinstance(delivery, Delivery)
    delivery.principal = Principal("bob", "mad", 2e9)
    return delivery
