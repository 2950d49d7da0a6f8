"""
Timelines, histories and lists, wherever the parts of a session lie.

On Valkey, SecantusDB and nanio, through the SDK; the archiver is in the test's hands,
so that what a test says happens first has happened.
"""

import pytest
import pytest_asyncio

from everbus.bus import NotFound
from everbus.gateway.store.cold import format
from tests.stack import CHUNK_ENTRIES

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="class", loop_scope="module")
async def spread(servers):
    """
    A timeline whose entries lie in S3 (1 to 60), in MongoDB (61 to 100) and in the
    hot tail (101 to 110).
    """
    await servers.empty()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(format, "CHUNK_ENTRIES", CHUNK_ENTRIES)
        async with servers.served() as (mad, hands):
            async with hands.draining():
                one = await servers.archived(mad, hands)
                await one.check()
                await one.say(40)
                await servers.drained()
            await one.say(10)
            assert await servers.entries_in(one.id) == 40
            yield mad, one


class TestPages:
    """
    A timeline whose entries lie in three tiers.
    """

    @pytest.mark.parametrize("limit", [7, 16, 100, 1000])
    async def test_by_seq_oldest_first(self, spread, limit):
        _, one = spread

        assert [e.entry for e in await one.timeline(limit)] == one.entries

    @pytest.mark.parametrize("limit", [7, 16, 100, 1000])
    async def test_by_seq_newest_first(self, spread, limit):
        mad, one = spread
        found, before = [], None
        while True:
            page = await mad.timeline(
                one.id, after=None, before=before, newest_first=True, limit=limit
            )
            found += page.entries
            before = page.next
            if before is None:
                break

        assert [e.entry for e in found] == one.entries[::-1]

    @pytest.mark.parametrize(
        ("after", "before"),
        [(0, 5), (10, 40), (55, 66), (90, 105), (40, 111), (108, 111)],
    )
    async def test_between_two_seqs_in_both_directions(self, spread, after, before):
        mad, one = spread
        bounds = {"after": after, "before": before, "limit": 1000}

        up = await mad.timeline(one.id, **bounds)
        down = await mad.timeline(one.id, **bounds, newest_first=True)

        wanted = list(range(after + 1, before))
        assert [e.seq for e in up.entries] == wanted
        assert [e.entry for e in up.entries] == one.entries[after : before - 1]
        assert list(down.entries) == list(up.entries)[::-1]

    async def test_by_time_in_both_directions(self, spread):
        mad, one = spread
        entries = await one.timeline()
        # One bound in each tier, and one that spans all three.
        for first, last in [(5, 12), (58, 63), (95, 104), (30, 107), (104, 109)]:
            since, until_ = entries[first].at, entries[last].at
            wanted = [e for e in entries if since <= e.at < until_]
            bounds = {"after": None, "since": since, "until": until_, "limit": 1000}

            up = await mad.timeline(one.id, **bounds)
            down = await mad.timeline(one.id, **bounds, newest_first=True)

            assert list(up.entries) == wanted
            assert list(down.entries) == wanted[::-1]
        page = await mad.timeline(one.id, after=None, since=entries[50].at, limit=1000)
        assert list(page.entries) == [e for e in entries if e.at >= entries[50].at]


class TestHistory:
    @pytest.mark.parametrize("moved", [False, True])
    async def test_every_version_can_be_read_and_compared(self, stack, moved):
        """
        Also of a session that was in S3 meanwhile.
        """
        async with stack.served() as (mad, hands), hands.draining():
            session = await mad.create_session("ada")
            seen = {1: session}
            for version in range(2, 9):
                patch = {
                    "work_in_progress": {
                        "step": version,
                        f"k{version}": [None, version],
                    },
                    "tags": [f"t{version}"],
                    "full_context": {"n": version},
                }
                seen[version] = await mad.update_session(session.id, patch)
            if moved:
                seen[9] = await mad.suspend_session(session.id)
                await hands.archive()
                assert (await stack.document(session.id))["archival_status"] == "S3"

            for version, then in seen.items():
                at = await mad.session_at(session.id, version)
                assert state_told(at) == state_told(then)
            difference = await mad.diff(session.id, 3, 6)
            assert [c.version for c in difference.changes] == [4, 5, 6]
            assert {c.principal for c in difference.changes} == {"ada"}
            assert difference.patch["work_in_progress"]["step"] == 6
            assert difference.patch["tags"] == ["t6"]
            with pytest.raises(NotFound):
                await mad.session_at(session.id, 99)

    @pytest.mark.parametrize("moved", [False, True])
    async def test_a_checkpoint_brings_its_state_back_as_a_new_version(
        self, stack, moved
    ):
        async with stack.served() as (mad, hands), hands.draining():
            session = await mad.create_session("ada")
            made = []
            for n in range(1, 5):
                patch = {"context_summary": {"n": n, f"k{n}": n}, "tags": [f"t{n}"]}
                session = await mad.update_session(session.id, patch)
                kind = "full" if n == 1 else "incremental"
                checkpoint = await mad.create_checkpoint(
                    session.id, name=f"c{n}", kind=kind
                )
                made.append((checkpoint, session))
            if moved:
                await mad.suspend_session(session.id)
                await hands.archive()
            page = await mad.checkpoints(session.id)
            assert [c.name for c in page.checkpoints] == ["c4", "c3", "c2", "c1"]
            kinds = [c.kind for c in page.checkpoints]
            assert kinds == ["incremental"] * 3 + ["full"]

            for checkpoint, then in made:
                before = await mad.get_session(session.id)
                after = await mad.restore_checkpoint(session.id, checkpoint.id)
                assert after.version == before.version + 1
                assert after.context_summary == then.context_summary
                assert after.tags == then.tags
            with pytest.raises(NotFound):
                await mad.restore_checkpoint(session.id, "no-such-checkpoint")


def state_told(session):
    return (
        session.version,
        session.state,
        session.owner_id,
        session.acl,
        session.participants,
        session.work_in_progress,
        session.context_summary,
        session.tags,
        session.fields,
    )


async def test_sessions_are_found_and_counted_in_whatever_tier(stack):
    async with stack.served() as (mad, hands), hands.draining():
        made = {}
        for name in ("hot", "warm", "cold"):
            session = await mad.create_session(f"owner-{name}")
            patch = {
                "tags": [name, "any"],
                "context_summary": {"topic": f"tides {name}"},
            }
            await mad.update_session(session.id, patch)
            await mad.join(session.id)
            await mad.append_and_wait(session.id, {"n": 1})
            made[name] = session.id
        await mad.suspend_session(made["cold"])
        await hands.archive()
        await mad.suspend_session(made["warm"])
        await stack.drained()

        async def found(**filters):
            page = await mad.list_sessions(**filters)
            return [session.id for session in page.sessions]

        assert set(await found(tag="any")) == set(made.values())
        assert set(await found(participant="fiedler")) == set(made.values())
        assert await found(owner="owner-warm") == [made["warm"]]
        assert await found(state="archived") == [made["cold"]]
        assert await found(state="dormant") == [made["warm"]]
        assert await found(tag="cold") == [made["cold"]]
        assert await found(text="hot") == [made["hot"]]
        assert await found(text="nowhere") == []
        [cold] = (await mad.list_sessions(state="archived")).sessions
        assert cold.archival_status == "S3"
        one_by_one, cursor = [], None
        while True:
            page = await mad.list_sessions(tag="any", cursor=cursor, limit=1)
            one_by_one += [session.id for session in page.sessions]
            cursor = page.next
            if cursor is None:
                break
        assert one_by_one == await found(tag="any")

        stats = await mad.stats()
        assert stats.sessions == 3
        assert stats.states == {"active": 1, "dormant": 1, "archived": 1}
        assert stats.tiers["cold"].sessions == 1
        assert stats.tiers["cold"].bytes == sum(
            path.stat().st_size for path in stack.objects(made["cold"])
        )
