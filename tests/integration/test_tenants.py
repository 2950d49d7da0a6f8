"""
Two tenants on real servers, people and MADs of the same names in both: what one of
them has is not there for the other, by any kind of command, in any tier.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
import uuid_utils

from everbus.bus import Mad, connect
from everbus.bus.derived_ids import USER_SESSIONS
from everbus.bus.errors import EverbusError, Forbidden, Invalid, NotFound
from everbus.bus.messages import Session
from everbus.gateway.identity.tokens import mint
from everbus.handlers.routes import HANDLERS
from tests.replicas import SECRET, until
from tests.stack import Stack, a_stack

pytestmark = pytest.mark.asyncio(loop_scope="module")

# A body for every kind that is about one session, as its owner would send it.
LOOK_BACK = {"after": None, "limit": 10, "push": False}
BODIES: dict[str, dict[str, Any]] = {
    "session.get": {},
    "session.update": {"patch": {"acl": ["ada"], "tags": ["mine"]}},
    "session.turn": {"entries": ["boo"], "patch": {"tags": ["mine"]}},
    "session.delete": {},
    "session.suspend": {},
    "session.resume": {},
    "session.durable": {"wait": True},
    "session.at": {"version": 1},
    "session.diff": {"from_version": 1, "to_version": 2},
    "session.broadcast": {"message": {"text": "boo"}},
    "session.watch": LOOK_BACK,
    "participant.add": {"mad": "hopper"},
    "participant.remove": {"mad": "fiedler"},
    "timeline.append": {"entry": {"text": "boo"}},
    "timeline.read": {"after": 0},
    "checkpoint.create": {"name": "c"},
    "checkpoint.list": {},
    "checkpoint.restore": {"checkpoint_id": "c1"},
}
# These have answers of their own.
OTHERS = {"session.create", "session.list", "session.stats"}
GATEWAYS = {"session.archive", "participant.lost"}
# Of whatever another tenant has, none of these may ever be told.
CANARIES = ("acme", "undertow", "tides", "grace")


def a_token(name: str, role: Any, tenant: str) -> str:
    return mint(
        SECRET,
        name=name,
        role=role,
        issuer="everbus",
        audience="everbus",
        ttl_s=600,
        now=time.time(),
        tenant=tenant,
    )


class House:
    """
    Connections of one tenant, by name and role.
    """

    def __init__(self, stack: Stack, tenant: str, opened: AsyncExitStack) -> None:
        self._stack, self._tenant, self._opened = stack, tenant, opened
        self._known: dict[tuple[str, str], Mad] = {}

    async def of(self, name: str, role: str = "user") -> Mad:
        known = self._known.get((name, role))
        if known is not None:
            return known
        # MADs are called the same in the whole house; people speak through any.
        mad = name if role == "mad" else f"desk-{self._tenant or 'none'}-{name}-{role}"
        token = a_token(name, role, self._tenant)
        opening = connect(self._stack.bus.url, mad=mad, token=token)
        self._known[name, role] = made = await self._opened.enter_async_context(opening)

        return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """
    All servers, a manager, and write-behind all the time.
    """
    async with a_stack(tmp_path_factory.mktemp("stack")) as made:
        await made.empty()
        async with made.manager():
            yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hands(stack: Stack) -> AsyncIterator[Any]:
    async with stack.hands() as made, made.draining():
        yield made


@asynccontextmanager
async def a_house(stack: Stack, tenant: str) -> AsyncIterator[House]:
    async with AsyncExitStack() as opened:
        yield House(stack, tenant, opened)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def acme(stack: Stack, hands: Any) -> AsyncIterator[House]:
    async with a_house(stack, "acme") as house:
        yield house


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def globex(stack: Stack, hands: Any) -> AsyncIterator[House]:
    async with a_house(stack, "globex") as house:
        yield house


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nobodys(stack: Stack, hands: Any) -> AsyncIterator[House]:
    """
    Who belongs to no tenant.
    """
    async with a_house(stack, "") as house:
        yield house


async def a_session(house: House, owner: str = "ada") -> Session:
    """
    A session of *owner* with something in all of its parts.
    """
    mad = await house.of(owner)
    session = await mad.create_session(owner)
    patch = {"acl": ["grace"], "tags": ["tides"], "fields": {"x": "undertow"}}
    session = await mad.update_session(session.id, patch)
    await mad.add_participant(session.id, "fiedler")
    mad.append(session.id, {"text": "undertow"})
    await mad.flush()

    return await mad.get_session(session.id)


async def refusal(mad: Mad, kind: str, session_id: str, body: dict[str, Any]) -> Any:
    """
    What *mad* is told, word for word, with the id that it asked for left out.
    """
    with pytest.raises(EverbusError) as told:
        await mad._requests.ask(kind, session_id, body, 10)
    error = told.value
    words = [error.message, *(f"{k}={v}" for k, v in error.details.items())]

    return error.code, [word.replace(session_id, "<id>") for word in words]


async def test_every_kind_is_tried() -> None:
    """
    A kind that is new has to be tried across tenants as well.
    """
    assert set(HANDLERS) == BODIES.keys() | OTHERS | GATEWAYS


ASKERS = [("ada", "user"), ("grace", "user"), ("root", "admin"), ("eve", "operator")]


@pytest.mark.parametrize("other", ["globex", "nobodys"])
async def test_what_another_tenant_has_is_not_there_for_any_command(
    acme: House, globex: House, nobodys: House, other: str
) -> None:
    """
    Whoever asks, also under the name of its owner or of one in its ACL, hears what
    whoever asks for a session that never was hears; and nothing of it changes.
    """
    session = await a_session(acme)
    house = {"globex": globex, "nobodys": nobodys}[other]
    never = str(uuid_utils.uuid7())
    for name, role in (*ASKERS, (f"hopper-{other}", "mad")):
        mad = await house.of(name, role)
        there, not_there = [
            await asyncio.gather(*(refusal(mad, k, one, b) for k, b in BODIES.items()))
            for one in (session.id, never)
        ]

        assert there == not_there, name
        assert not [canary for canary in CANARIES if canary in str(there)], name
        codes = {kind: code for kind, (code, _) in zip(BODIES, there, strict=True)}
        # An operator may end no session at all.
        ended = "forbidden" if role == "operator" else "not_found"
        assert codes == dict.fromkeys(BODIES, "not_found") | {"session.delete": ended}
    owner = await acme.of("ada")

    assert await owner.get_session(session.id) == session


@pytest.mark.parametrize("or_get", [True, False])
async def test_an_id_that_another_tenant_has_is_forbidden_and_no_more(
    acme: House, globex: House, or_get: bool
) -> None:
    session = await a_session(acme)
    for name, role in (("ada", "user"), ("root", "admin"), ("hopper-globex", "mad")):
        body = {"user_id": name, "or_get": or_get}
        code, told = await refusal(
            await globex.of(name, role), "session.create", session.id, body
        )

        assert code == "forbidden"
        assert "choose another id" in told[0]
        assert not [c for c in (*CANARIES, "tenant") if c in str(told)]


async def test_an_append_to_what_another_tenant_has_is_a_dead_letter(
    acme: House, globex: House
) -> None:
    """
    Nobody waits for it, and still its sender can learn what became of it.
    """
    session = await a_session(acme)
    mad = await globex.of("hopper-globex", "mad")
    command = mad.append(session.id, {"text": "boo"})
    with pytest.raises(NotFound):
        await mad.flush(settled=True)

    async def judged() -> bool:
        return (await mad.outcome(command)).state == "rejected"

    await until(judged)
    outcome = await mad.outcome(command)
    assert outcome.code == "not_found"
    assert not [c for c in CANARIES if c in outcome.message]


async def test_a_search_finds_the_sessions_of_ones_own_tenant(
    acme: House, globex: House, nobodys: House
) -> None:
    """
    By any filter, for users of the same name and for those who find everything.
    """
    houses = {"acme": acme, "globex": globex, "": nobodys}
    made = {tenant: await a_session(house) for tenant, house in houses.items()}
    filters = ({}, {"owner": "ada"}, {"tag": "tides"}, {"text": "undertow"})
    for tenant, house in houses.items():
        for name, role in ASKERS:
            mad = await house.of(name, role)

            async def listed(mad: Mad = mad, tenant: str = tenant) -> bool:
                page = await mad.list_sessions(limit=1000)
                return made[tenant].id in {s.id for s in page.sessions}

            await until(listed, what=f"{name} of {tenant} finds {made[tenant].id}")
            for asked in filters:
                page = await mad.list_sessions(**asked)  # type: ignore[arg-type]
                assert {s.tenant for s in page.sessions} == {tenant}


async def test_a_cursor_of_another_tenant_opens_nothing(
    acme: House, globex: House
) -> None:
    for _ in range(2):
        await a_session(acme, "cy")
        await a_session(globex, "cy")
    theirs, ours = await acme.of("root", "admin"), await globex.of("root", "admin")

    async def paged() -> str | None:
        return (await theirs.list_sessions(owner="cy", limit=1)).next

    cursor = await until(paged)
    page = await ours.list_sessions(owner="cy", cursor=cursor)

    assert {s.tenant for s in page.sessions} <= {"globex"}


async def test_counts_of_the_whole_house_are_for_no_tenant(
    acme: House, nobodys: House
) -> None:
    for role in ("admin", "operator"):
        with pytest.raises(Forbidden, match="belongs to no tenant"):
            await (await acme.of("root", role)).stats()
        await (await nobodys.of("root", role)).stats()


async def test_the_session_of_a_user_is_another_one_in_each_tenant(
    acme: House, globex: House, nobodys: House
) -> None:
    """
    And the same one however it is asked for within a tenant; where there are no
    tenants, its id is what it always was.
    """
    ids = []
    for house in (acme, globex, nobodys):
        asking = [await house.of("cleo"), await house.of("root", "admin")]
        found = await asyncio.gather(*(m.get_or_create_session("cleo") for m in asking))
        [one] = {session.id for session in found}
        ids.append(one)

    assert len(set(ids)) == 3
    assert ids[2] == str(uuid.uuid5(USER_SESSIONS, "cleo"))


async def test_an_acl_lets_in_names_of_its_tenant_alone(
    acme: House, globex: House
) -> None:
    """
    Its owner, and who oversees the tenant, read and change it; its members read it.
    """
    session = await a_session(acme)
    bob, bob_there = await acme.of("bob"), await globex.of("bob")
    with pytest.raises(Forbidden):
        await bob.get_session(session.id)

    await (await acme.of("ada")).update_session(session.id, {"acl": ["bob"]})

    assert (await bob.get_session(session.id)).acl == ("bob",)
    with pytest.raises(Forbidden, match="acl"):
        await bob.update_session(session.id, {"acl": ["bob", "eve"]})
    with pytest.raises(NotFound):
        await bob_there.get_session(session.id)
    for role in ("operator", "admin"):
        overseer = await acme.of("eve", role)
        changed = await overseer.update_session(session.id, {"acl": [role]})
        assert changed.acl == (role,)
    with pytest.raises(Forbidden):
        await bob.get_session(session.id)


@pytest.mark.parametrize(
    "patch",
    [
        {name: value}
        for name, value in {
            "tenant": "globex",
            "version": 99,
            "owner_id": "eve",
            "notices": 7,
            "last_seq": 9,
            "id": "other",
            "created_at": "2027-01-01T00:00:00Z",
            "participants": {"eve": {}},
            "role": "admin",
        }.items()
    ],
    ids=lambda patch: next(iter(patch)),
)
async def test_nobody_assigns_what_is_not_theirs_to_assign(
    acme: House, patch: dict[str, Any]
) -> None:
    """
    Not even an admin, and not together with what may be patched.
    """
    session = await a_session(acme)
    admin = await acme.of("root", "admin")

    with pytest.raises(Invalid):
        await admin.update_session(session.id, {"tags": ["x"], **patch})
    assert await admin.get_session(session.id) == session


async def test_a_session_keeps_its_tenant_through_all_tiers(
    stack: Stack, hands: Any, acme: House, globex: House
) -> None:
    """
    Dormant, in S3 and back: the other tenant hears the same all the while.
    """
    session, dormant = await a_session(acme, "tia"), await a_session(acme, "tim")
    owner, other = await acme.of("tia"), await globex.of("tia")
    never = await refusal(other, "session.get", str(uuid_utils.uuid7()), {})

    await (await acme.of("tim")).suspend_session(dormant.id)
    await stack.until_cold(dormant.id)
    assert await refusal(other, "session.get", dormant.id, {}) == never

    await owner.suspend_session(session.id)
    await stack.until_cold(session.id)
    # Not all that is idle has to go: some of it was asked for just now.
    await hands.archive()
    async with asyncio.timeout(10):
        document = await stack.until_document(session.id, archival_status="S3")
    assert document["tenant"] == "acme"
    [found] = (await owner.list_sessions(owner="tia")).sessions
    assert (found.tenant, found.archival_status) == ("acme", "S3")
    assert (await other.list_sessions(owner="tia")).sessions == ()
    assert await refusal(other, "session.get", session.id, {}) == never

    back = await owner.get_session(session.id)
    assert (back.tenant, back.fields) == ("acme", {"x": "undertow"})
    assert (await owner.session_at(session.id, 1)).tenant == "acme"
    assert await refusal(other, "session.get", session.id, {}) == never
