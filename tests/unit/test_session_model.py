"""
All handlers against a reference model of plain dicts and lists.

The model is written from DESIGN.md and RFC 7396, not from the handlers, and
shares no code with them; hypothesis looks for a history where they differ.
"""

import copy
import json
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from everbus.bus.errors import Rejection
from everbus.bus.messages import Session, pack
from everbus.handlers.commands import Command
from everbus.handlers.history import state_of
from everbus.handlers.outcomes import Outcome
from everbus.handlers.patches import merge
from tests.unit.commands import (
    add,
    append,
    create,
    delete,
    get,
    handle,
    hot_bytes,
    read,
    remove,
    resume,
    seqs,
    suspend,
    update,
)

HOT_LIMIT = 49_152
TAIL_ENTRIES = 20
TAIL_LIMIT = 24_576
LISTS = ("acl", "tags")
OBJECTS = ("context_summary", "fields", "work_in_progress")
# The model measures JSON, the handlers msgpack and their own fields' names.
DOUBT_BYTES = 1_500


class Refused(Exception):
    """
    The model's rejection, by code; `maybe_too_large` if the model cannot tell.
    """


class Model:
    """
    One session as its users understand it.
    """

    def __init__(self) -> None:
        self.there: dict[str, Any] | None = None

    def create(self, user_id: str, principal: str, *, or_get: bool) -> None:
        if self.there is not None and not or_get:
            raise Refused("already_exists")
        if self.there is None:
            self.there = {
                "version": 1,
                "owner": user_id,
                "acl": [] if principal == user_id else [f"user:{principal}"],
                "roles": {},
                "work_in_progress": {},
                "context_summary": {},
                "fields": {},
                "tags": [],
                "state": "active",
                "timeline": [],
            }

    def update(
        self, patch: dict[str, Any], expected: int | None, *, may_share: bool
    ) -> None:
        there = self._expected(expected)
        if "acl" in patch and not may_share:
            raise Refused("forbidden")
        after = copy.deepcopy(there)
        for field, value in patch.items():
            self._patch(after, field, value)
        # As text: to Python 1, 1.0 and True are equal.
        if json.dumps(after) != json.dumps(there):
            self._step(after)

    def delete(self, expected: int | None) -> None:
        self._expected(expected)
        self.there = None

    def add(
        self, mad: str, role: str, expected: int | None, *, may_share: bool
    ) -> None:
        there = self._expected(expected)
        after = copy.deepcopy(there)
        after["roles"][mad] = role
        admitting = {mad, *(f"{one}:{mad}" for one in ("mad", "host", "participant"))}
        if mad != there["owner"] and admitting.isdisjoint(there["acl"]):
            if may_share:
                after["acl"].append(f"participant:{mad}")
            elif after != there:
                raise Refused("forbidden")
        if after != there:
            self._step(after)

    def remove(self, mad: str, expected: int | None, *, leaves: bool) -> None:
        there = self._expected(expected)
        after = copy.deepcopy(there)
        after["roles"].pop(mad, None)
        if not leaves and f"participant:{mad}" in after["acl"]:
            after["acl"].remove(f"participant:{mad}")
        if after != there:
            self._step(after)

    def append(self, mad: str, entry: Any) -> int:
        there = self._existing()
        if not sound(entry):
            raise Refused("invalid")
        if there["state"] == "dormant":
            there["version"] += 1
            there["state"] = "active"
        there["timeline"].append((mad, copy.deepcopy(entry)))
        return len(there["timeline"])

    def rest(self, state: str, expected: int | None) -> None:
        there = self._expected(expected)
        if there["state"] != state:
            there["version"] += 1
            there["state"] = state

    def page(self, after: int | None, limit: int) -> list[int]:
        there = self._existing()
        if limit < 1 or limit > 1000 or (after is not None and after < 0):
            raise Refused("invalid")
        every = list(range(1, len(there["timeline"]) + 1))
        return every[-limit:] if after is None else every[after:][:limit]

    def _existing(self) -> dict[str, Any]:
        if self.there is None:
            raise Refused("not_found")
        return self.there

    def _expected(self, version: int | None) -> dict[str, Any]:
        there = self._existing()
        if version not in (None, there["version"]):
            raise Refused("version_conflict")
        return there

    def _patch(self, after: dict[str, Any], field: str, value: Any) -> None:
        if field not in (*LISTS, *OBJECTS):
            raise Refused("invalid")
        if value is None:
            after[field] = [] if field in LISTS else {}
        elif not sound(value) or isinstance(value, list) != (field in LISTS):
            raise Refused("invalid")
        elif field in LISTS:
            after[field] = sorted(set(value), key=value.index)
        else:
            for path, leaf in leaves(value, ()):
                graft(after[field], path, leaf)

    def _step(self, after: dict[str, Any]) -> None:
        after["version"] += 1
        after["state"] = "active"
        if state_bytes(after) > HOT_LIMIT + DOUBT_BYTES:
            raise Refused("too_large")
        self.there = after


def state_bytes(there: dict[str, Any]) -> int:
    roles = 60 * len(there["roles"])
    return roles + len(json.dumps({**there, "timeline": []}))


def sound(value: Any) -> bool:
    if isinstance(value, dict):
        return all(
            isinstance(k, str) and not k.startswith("$") and "." not in k and sound(v)
            for k, v in value.items()
        )
    if isinstance(value, list):
        return all(map(sound, value))
    return value == value and value not in (float("inf"), 2**53 + 1, b"bytes")


def leaves(patch: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    """
    The patch as assignments: an object as a leaf means that it must be there.
    """
    if not isinstance(patch, dict):
        return [(path, patch)]
    found: list[tuple[tuple[str, ...], Any]] = [(path, {})]
    for name, value in patch.items():
        found += leaves(value, (*path, name))
    return found


def graft(tree: dict[str, Any], path: tuple[str, ...], leaf: Any) -> None:
    if not path:
        return
    for name in path[:-1]:
        tree = tree[name]
    last = path[-1]
    if leaf is None:
        tree.pop(last, None)
    elif leaf != {} or not isinstance(tree.get(last), dict):
        tree[last] = copy.deepcopy(leaf)


names = st.sampled_from(["ada", "bo", "cy@x", "dee.1"])
mads = st.sampled_from(["ada", "bo", "cy-x", "dee_1"])
roles = st.sampled_from([0, 0, 6, 9_000]).map("r".__mul__)
bad = st.sampled_from([float("nan"), float("inf"), 2**53 + 1, b"bytes", {"$a": 1}])
scalars = st.sampled_from([None, True, 0, -3, 2**53, 1.5, "", "ü"])
texts = st.sampled_from([100, 900, 7_000, 20_000, 30_000]).map("x".__mul__)
values = st.recursive(
    st.one_of(scalars, scalars, scalars, texts),
    lambda inner: (
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        | st.lists(inner, max_size=2)
    ),
    max_leaves=6,
)
objects = st.dictionaries(st.sampled_from("abc"), values, max_size=3) | st.none()
states = st.sampled_from(OBJECTS)
entries_of_acls = names | st.sampled_from(["user:bo", "mad:bo", "participant:bo"])
acls = st.lists(entries_of_acls, max_size=4) | st.none()
patches = st.dictionaries(states, objects, max_size=2)
odd_patches = st.one_of(
    st.fixed_dictionaries({"acl": acls}),
    st.fixed_dictionaries({"tags": acls}),
    st.just({"tags": {"a": 1}}),
    st.fixed_dictionaries({"context_summary": objects, "acl": st.just({"a": 1})}),
    st.fixed_dictionaries({"context_summary": st.fixed_dictionaries({"a": bad})}),
    st.fixed_dictionaries({"work_in_progress": st.just([1])}),
    st.dictionaries(st.sampled_from(["version", "owner_id", "mood"]), objects),
)
entries = st.one_of(values, values, values, texts, bad)
# Mostly what the session is at; else what it was, or never can be.
lags = st.sampled_from([None, None, None, None, 0, 0, 0, 0, 1, -1])


def begun(conversation: "Conversation") -> bool:
    return conversation.session is not None


def absent(conversation: "Conversation") -> bool:
    return conversation.session is None


class Conversation(RuleBasedStateMachine):
    """
    A life of one session id; deleted and begun again it counts from one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.session: Session | None = None
        self.appended: list[bytes] = []

    def expect(self, lag: int | None) -> int | None:
        there = 0 if self.session is None else self.session.version
        return None if lag is None else there + lag

    def both(self, command: Command, modelled: Any) -> Outcome | None:
        """
        Handle *command* here and in the model, and compare how they judge it.
        """
        before, frozen = self.session, pack(self.session)
        kept = copy.deepcopy(self.model.there)
        try:
            modelled()
            wanted = "ok"
        except Refused as refusal:
            wanted = str(refusal)
        try:
            outcome = handle(self.session, command)
            found = "ok"
        except Rejection as rejection:
            outcome, found = None, rejection.code
        assert pack(before) == frozen, "a handler changed its argument"
        if found == "too_large" and wanted == "ok":
            assert state_bytes(self.model.there or {}) > HOT_LIMIT - DOUBT_BYTES
            self.model.there = kept
        else:
            assert found == wanted
        if outcome is not None:
            self.settle(outcome)
        return outcome

    def settle(self, outcome: Outcome) -> None:
        before, after, events = self.session, outcome.session, outcome.events
        began = before is None or after is None
        stepped = sum(event.kind != "timeline.appended" for event in events)
        version = 0 if before is None else before.version
        assert stepped <= 1
        if not events:
            assert after is before
        else:
            assert events[-1].version == version + stepped
        if not began:
            assert after.version == version + stepped
            for event in events[:stepped]:
                assert merge(state_of(before), event.patch) == state_of(after)
        if began:
            self.appended = []
        self.appended += outcome.entries
        self.session = after

    @initialize(user=names, principal=names)
    def begin(self, user, principal):
        self.create(user, principal, or_get=False)

    @precondition(absent)
    @rule(
        command=st.sampled_from(
            [
                *(get(), update({}), delete(), add("bo"), remove("bo"), append(1)),
                *(read(), suspend(), resume()),
            ]
        )
    )
    def ask_for_what_is_not_there(self, command):
        self.both(command, self.model._existing)

    @rule(user=names, principal=names, or_get=st.booleans())
    def create(self, user, principal, or_get):
        command = create(user, or_get=or_get, principal=principal)
        self.both(command, lambda: self.model.create(user, principal, or_get=or_get))

    @precondition(begun)
    @rule(patch=patches, lag=lags)
    def update(self, patch, lag):
        self.update_as(patch, lag, may_share=False)

    @precondition(begun)
    @rule(patch=odd_patches, lag=lags, may_share=st.booleans())
    def update_oddly(self, patch, lag, may_share):
        self.update_as(patch, lag, may_share=may_share)

    @precondition(begun)
    @rule(field=states, name=st.sampled_from("abc"), length=st.integers(0, 30_000))
    def fill(self, field, name, length):
        self.update_as({field: {name: "x" * length}}, None, may_share=False)

    def update_as(self, patch, lag, *, may_share):
        expected = self.expect(lag)
        command = update(patch, expected_version=expected, may_share=may_share)
        self.both(
            command, lambda: self.model.update(patch, expected, may_share=may_share)
        )

    @precondition(begun)
    @rule(lag=st.sampled_from([0, 1, 1, 1, 1, -1]))
    def delete(self, lag):
        expected = self.expect(lag)
        command = delete(expected_version=expected)
        self.both(command, lambda: self.model.delete(expected))

    @precondition(begun)
    @rule(mad=mads, role=roles, lag=lags, may_share=st.booleans())
    def add(self, mad, role, lag, may_share):
        expected = self.expect(lag)
        command = add(mad, role, expected_version=expected, may_share=may_share)
        self.both(
            command, lambda: self.model.add(mad, role, expected, may_share=may_share)
        )

    @precondition(begun)
    @rule(mad=mads, lag=lags, leaves=st.booleans())
    def remove(self, mad, lag, leaves):
        expected = self.expect(lag)
        by = {"principal": mad, "is_mad": True} if leaves else {}
        command = remove(mad, expected_version=expected, **by)
        self.both(command, lambda: self.model.remove(mad, expected, leaves=leaves))

    @precondition(begun)
    @rule(state=st.sampled_from(["dormant", "dormant", "active"]), lag=lags)
    def rest(self, state, lag):
        expected = self.expect(lag)
        make = suspend if state == "dormant" else resume
        command = make(expected_version=expected)
        self.both(command, lambda: self.model.rest(state, expected))

    @precondition(begun)
    @rule(mad=mads, entry=entries, lag=lags)
    def append(self, mad, entry, lag):
        command = append(entry, mad=mad, expected_version=self.expect(lag))
        outcome = self.both(command, lambda: self.model.append(mad, entry))
        if outcome is not None:
            assert outcome.reply == {"seq": len(self.model.there["timeline"])}

    @precondition(begun)
    @rule(mad=mads, count=st.integers(2, 25), length=st.integers(0, 2_000))
    def talk(self, mad, count, length):
        for n in range(count):
            self.append(mad, {"n": n, "text": "x" * length}, None)

    @precondition(begun)
    @rule(
        after=st.none() | st.integers(-1, 40),
        limit=st.sampled_from([0, 1, 3, 20, 1000, 1001]),
    )
    def read(self, after, limit):
        wanted: list[int] = []
        outcome = self.both(
            read(after, limit=limit),
            lambda: wanted.extend(self.model.page(after, limit)),
        )
        if outcome is None:
            return
        if outcome.fetch is not None:
            first, last, limit = msgspec.structs.astuple(outcome.fetch)[:3]
            assert wanted == [*range(first, last + 1)][:limit]
            assert wanted[0] not in seqs(self.session.recent_timeline)
        else:
            assert wanted == seqs(tuple(map(bytes, map(pack, outcome.reply.entries))))

    @precondition(begun)
    @rule()
    def get(self):
        outcome = self.both(get(), self.model._existing)
        if outcome is not None:
            reply = msgspec.msgpack.decode(pack(outcome.reply), type=Session)
            assert reply.version == self.model.there["version"]
            tail = [entry["seq"] for entry in reply.recent_timeline]
            assert tail == seqs(self.session.recent_timeline)

    @invariant()
    def the_session_is_what_the_model_says(self):
        there, session = self.model.there, self.session
        assert (there is None) == (session is None)
        if session is None:
            return
        assert there == {
            "version": session.version,
            "owner": session.owner_id,
            "acl": list(session.acl),
            "roles": {mad: part["role"] for mad, part in session.participants.items()},
            "work_in_progress": session.work_in_progress,
            "context_summary": session.context_summary,
            "fields": session.fields,
            "tags": list(session.tags),
            "state": session.state,
            "timeline": [
                (entry["author"], entry["entry"])
                for entry in map(msgspec.msgpack.decode, self.appended)
            ],
        }

    @invariant()
    def seq_has_no_gap_and_no_duplicate(self):
        last = 0 if self.session is None else self.session.last_seq
        assert seqs(tuple(self.appended)) == list(range(1, last + 1))

    @invariant()
    def the_tail_is_the_newest_entries_within_the_hot_bound(self):
        if self.session is None:
            return
        tail = list(self.session.recent_timeline)
        assert tail == self.appended[len(self.appended) - len(tail) :]
        assert len(tail) <= TAIL_ENTRIES
        assert sum(map(len, tail)) <= TAIL_LIMIT
        assert hot_bytes(self.session) <= HOT_LIMIT


TestConversation = Conversation.TestCase
TestConversation.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
