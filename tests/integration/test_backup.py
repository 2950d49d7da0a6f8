"""
`everbus backup` and `everbus restore` on real servers: with writers beside, killed at
each step, under a bus that is newer than what is restored.
"""

import asyncio
import json
import signal

import pytest
import pytest_asyncio

from everbus.bus.errors import EverbusError, Unavailable
from everbus.compose import backup_command
from everbus.compose.backup import taking
from everbus.compose.backup.folder import MANIFEST, PROGRESS
from everbus.compose.backup.format import read_part
from everbus.gateway.failpoints import BACKUP, RESTORE
from everbus.gateway.store import key_names
from everbus.gateway.store.cold import format
from everbus.gateway.store.mongo import export
from tests.commandline import CommandLine, own_logs
from tests.conversations import Conversation
from tests.processes import DEVNULL, PIPE, start_python
from tests.replicas import until
from tests.servers import inherited
from tests.stack import CHUNK_ENTRIES, PARTITIONS

__all__ = ["own_logs"]
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("own_logs"),
    pytest.mark.timeout(120),
]

# Sessions in a part, and in a page: a backup of five has several parts.
FEW = 2
PROGRAM = f"""
from everbus.compose.backup import taking
from everbus.gateway.store.mongo import export
taking.PART_SESSIONS = export.PAGE_SESSIONS = {FEW}
from everbus.compose.cli import main
main()
"""
# As somebody presses Ctrl-C when the second part is finished.
INTERRUPTED = f"""
import os, signal
from everbus.compose.backup.folder import BackupFolder
note = BackupFolder.note
def noted(self, progress):
    note(self, progress)
    if len(progress.parts) == 3:
        os.kill(os.getpid(), signal.SIGINT)
BackupFolder.note = noted
{PROGRAM}
"""
BRANCH = ("lineage", "ancestor", "claims")
ROWS = ("timeline", "events", "notices", "snapshots", "checkpoints", "removals")


@pytest.fixture(autouse=True)
def no_logs_of_commands(monkeypatch):
    monkeypatch.setattr(backup_command, "configure_logs", lambda *_: None)


async def beyond(stack, database):
    """
    Rows that no document counts: of commits that are not in the copy.
    """
    held = stack.held.client[database]
    wanted = {d["_id"]: d for d in await held["sessions"].find().to_list(None)}
    return [
        row
        for name, number, count in (
            ("timeline", "seq", "last_seq"),
            ("events", "version", "version"),
            ("notices", "notices", "notices"),
        )
        for row in await held[name].find().to_list(None)
        if row[number] > wanted[row["session"]][count]
    ]


def everbus(stack, **settings):
    command = CommandLine(stack.bus.url)
    command._env |= stack.environment(**settings)
    return command


async def process(stack, *arguments, program=PROGRAM, **settings):
    """
    The command as a process, with small parts; how it ended.
    """
    running = await start_python(
        *("-c", program, *arguments),
        env={**inherited(), **stack.environment(development=True, **settings)},
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )
    _, talk = await running.communicate()
    return running.returncode, talk.decode()


async def fresh(stack):
    """
    Another database, and a Redis that knows nothing and says so.
    """
    await stack.empty()
    await stack.client.flushall()


async def contents(stack, database, *collections):
    """
    What a database holds, but for the claims.
    """
    held = stack.held.client[database]
    found = {}
    for name in collections or ("sessions", *ROWS):
        for one in await held[name].find().to_list(None):
            for field in BRANCH:
                one.pop(field, None)
            found[name, str(one["_id"])] = one
    return found


async def some_conversations(stack, mad, hands):
    """
    One that is archived, returned, active, dormant; and a deleted one.
    """
    archived = await stack.archived(mad, hands)
    returned = await stack.archived(mad, hands)
    await returned.change()
    active, dormant = [await Conversation.begin(mad) for _ in range(2)]
    for one in (active, dormant):
        await one.say(30)
        await one.change()
    await mad.create_checkpoint(active.id, name="here")
    await dormant.suspend()
    gone = await mad.create_session("ada")
    await mad.delete_session(gone.id)
    await stack.drained()

    return [archived, returned, active, dormant], gone.id


class Made:
    """
    A backup, and what it is of.
    """

    def __init__(self, stack, conversations, gone, folder, told):
        self.stack, self.conversations, self.gone = stack, conversations, gone
        self.folder, self.told = folder, told
        self.database = stack.database


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(servers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("backups") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(format, "CHUNK_ENTRIES", CHUNK_ENTRIES)
        patch.setattr(taking, "PART_SESSIONS", FEW)
        patch.setattr(export, "PAGE_SESSIONS", FEW)
        patch.setattr(backup_command, "configure_logs", lambda *_: None)
        await fresh(servers)
        async with servers.served() as (mad, hands), hands.draining():
            found, gone = await some_conversations(servers, mad, hands)
        command = everbus(servers)
        told = await command("backup", str(folder), "--with-archives", "-o", "json")
    assert told.code == 0, told
    return Made(servers, found, gone, folder, told.json)


def records_in(folder):
    return [r for path in sorted(folder.glob("*.part")) for r in read_part(path)]


def files_in(folder):
    """
    Name → what changes if a file is written again.
    """
    return {
        p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("*.part")
    }


def finished_in(folder):
    """
    Those of them that the backup has noted.
    """
    noted = folder / MANIFEST
    noted = noted if noted.exists() else folder / PROGRESS
    names = {part["name"] for part in json.loads(noted.read_text())["backup"]["parts"]}
    return {name: file for name, file in files_in(folder).items() if name in names}


async def test_a_fresh_bus_goes_on_with_what_is_restored(made):
    """
    With nothing left of Redis, MongoDB and the bucket: each session, its archive and
    its tombstone are there, the next seq and version follow, `verify` finds nothing.
    """
    stack = made.stack
    await fresh(stack)
    for one in made.conversations:
        for file in stack.objects(one.id):
            file.unlink()
    command = everbus(stack)

    done = await command("restore", str(made.folder), "-o", "json")

    assert (done.code, done.json["sessions"]) == (0, 5), done
    assert done.json["objects"] == made.told["counts"]["objects"]
    async with stack.served() as (mad, hands), hands.draining():
        for one in made.conversations:
            one.mad = mad
            await one.check()
            await one.say(3)
            await one.change()
            await one.check()
            held = await mad.durable(one.id, wait=True)
            assert (held.version, held.seq) == (one.version, len(one.entries))
        assert len((await mad.checkpoints(made.conversations[2].id)).checkpoints) == 1
        with pytest.raises(EverbusError, match="no session"):
            await mad.get_session(made.gone)
        await stack.drained()
        found = await command("verify", "--all")
        assert found.code == 0, found


async def test_a_backup_killed_at_each_step_goes_on_and_is_the_same(made, tmp_path):
    """
    Each run goes on behind the one that was killed before: what that had finished
    stays as it is, to the inode.
    """
    folder = tmp_path / "b"
    arguments = ("backup", str(folder), "--with-archives")
    kept = {}
    for point in BACKUP:
        killed, talk = await process(
            made.stack,
            *arguments,
            fail_point=f"{point}:1",
            mongo_database=made.database,
        )
        assert killed == -signal.SIGKILL, talk
        assert kept.items() <= files_in(folder).items()
        kept = finished_in(folder)

    assert len(kept) == len(made.told["parts"])
    assert records_in(folder) == records_in(made.folder)
    ended, talk = await process(made.stack, *arguments, mongo_database=made.database)
    assert (ended, files_in(folder)) == (5, kept), talk


async def test_a_restore_killed_at_each_step_goes_on_and_is_whole(made):
    """
    Each run goes on behind the one that was killed before. A whole second one changes
    nothing.
    """
    stack = made.stack
    await fresh(stack)
    arguments = ("restore", str(made.folder))
    source = await contents(stack, made.database)
    for point, nth in zip(RESTORE, (2, 1, 1, 1), strict=True):
        killed, talk = await process(stack, *arguments, fail_point=f"{point}:{nth}")
        assert killed == -signal.SIGKILL, talk
        torn = await contents(stack, stack.database)
        assert torn.items() < source.items()

    ended, talk = await process(stack, *arguments)

    assert ended == 0, talk
    assert await contents(stack, stack.database) == source
    again = await everbus(stack)(*arguments, "-o", "json")
    assert (again.code, again.json["sessions"]) == (0, 0)
    assert await contents(stack, stack.database) == source


async def test_ctrl_c_ends_a_backup_with_130_and_the_next_run_goes_on(made, tmp_path):
    environment = {"mongo_database": made.database}
    arguments = ("backup", str(tmp_path / "b"), "--with-archives")

    ended, talk = await process(
        made.stack, *arguments, program=INTERRUPTED, **environment
    )

    assert ended == 130, talk
    assert "Traceback" not in talk
    before = files_in(tmp_path / "b")
    ended, talk = await process(made.stack, *arguments, **environment)
    assert (ended, len(before)) == (0, 3), talk
    assert "behind 3 finished parts" in talk
    assert before.items() <= files_in(tmp_path / "b").items()


async def test_sessions_that_are_written_and_moved_meanwhile_are_whole(
    stack, tmp_path, monkeypatch
):
    """
    Writers, an archiver that drains, archives and brings back: of each session the
    copy has all entries, events and notices up to its document's counts.
    """
    monkeypatch.setattr(taking, "SIDE_BY_SIDE", 3)
    command = everbus(stack)
    stop = asyncio.Event()
    async with stack.served() as (mad, hands), hands.at_it(every_s=0.02):
        ones = [await Conversation.begin(mad) for _ in range(4)]

        async def write(one):
            while not stop.is_set():
                await one.say(3)
                await one.change()
                await one.suspend()
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as writing:
            for one in ones:
                writing.create_task(write(one))
            await mad.durable(ones[0].id, wait=True)
            made = []
            for n in range(2):
                told = await command(
                    "backup", str(tmp_path / f"b{n}"), "--with-archives", "-o", "json"
                )
                made.append(told)
            stop.set()
        await stack.drained()

    await fresh(stack)
    for n, told in enumerate(made):
        assert (told.code, told.json["unsettled"]) == (0, []), told
        command = everbus(stack, mongo_database=f"{stack.database}-{n}")
        done = await command("restore", str(tmp_path / f"b{n}"), "-o", "json")
        assert (done.code, done.json["sessions"]) == (0, 4), done
        assert await beyond(stack, f"{stack.database}-{n}") == []
    async with stack.replica(), stack.mad():
        found = [
            await everbus(stack, mongo_database=f"{stack.database}-{n}")(
                "verify", "--all"
            )
            for n in range(2)
        ]
    assert [one.code for one in found] == [0, 0], found


@pytest.mark.parametrize("remedy", ["an empty Redis", "the same Redis, restarted"])
async def test_an_older_backup_under_a_newer_bus_forks_and_doubles_nothing(
    stack, tmp_path, remedy
):
    """
    The bus holds newer hot data than the restored MongoDB: its appends become dead
    letters and its reads are refused, until a later lineage begins with what is
    restored.
    """
    await fresh(stack)
    command = everbus(stack)
    async with stack.served() as (mad, hands), hands.draining():
        hot, resting = [await Conversation.begin(mad) for _ in range(2)]
        for one in (hot, resting):
            await one.say(5)
            await one.change()
        await resting.suspend()
        await stack.drained()
        assert (await command("backup", str(tmp_path / "b"))).code == 0
        kept = {one.id: (one.version, len(one.entries)) for one in (hot, resting)}
        for one in (hot, resting):
            await mad.append_and_wait(one.id, "after the backup", durability="warm")
            await mad.update_session(one.id, {"tags": ["after"]})
        await mad.suspend_session(resting.id)
        await stack.until_cold(resting.id)
        await stack.drained()
        await stack.held.client.drop_database(stack.database)

        done = await command("restore", str(tmp_path / "b"), "-o", "json")

        assert done.code == 0, done
        restored = await contents(stack, stack.database)
        with pytest.raises(Unavailable, match=r"diverge|lineage"):
            await mad.append_and_wait(hot.id, "onto newer", durability="warm")
        with pytest.raises(Unavailable, match="belongs to lineage"):
            await mad.append_and_wait(resting.id, "onto newer", timeout=5)
        dead = [key_names.dead(p) for p in range(PARTITIONS)]

        async def buried():
            return sum([await stack.client.xlen(one) for one in dead])

        await until(buried, 20, "a dead letter")
        assert await contents(stack, stack.database) == restored
    if remedy == "an empty Redis":
        await stack.client.flushall()
    else:
        await stack.bus.restart()
    async with stack.served() as (mad, hands), hands.draining():
        for one in (hot, resting):
            one.mad = mad
            assert (one.version, len(one.entries)) == kept[one.id]
            await one.check()
            await one.say(2)
            await one.change()
            await one.check()
            await mad.durable(one.id, wait=True)
        await stack.drained()
        found = await command("verify", "--all")
        assert found.code == 0, found


async def test_a_database_with_sessions_is_refused_and_newer_ones_are_left_alone(
    made,
):
    stack = made.stack
    await fresh(stack)
    command = everbus(stack)
    arguments = ("restore", str(made.folder), "-o", "json")
    source = stack.held.client[made.database]["sessions"]
    here = stack.held["sessions"]
    newer, older, gone = [one.id for one in made.conversations[:3]]
    document = await source.find_one({"_id": newer})
    await here.insert_one(document | {"version": document["version"] + 1})
    document = await source.find_one({"_id": older})
    await here.insert_one(document | {"last_seq": document["last_seq"] - 1})
    document = await source.find_one({"_id": gone})
    ended = {name: document[name] for name in ("_id", "created_at")}
    await here.insert_one(ended | {"deleted_at": document["last_active"]})
    before = await contents(stack, stack.database)

    refused = await command(*arguments)

    assert refused.code == 5
    assert "--into-existing" in refused.talk
    assert await contents(stack, stack.database) == before
    done = await command(*arguments, "--into-existing")
    assert (done.code, done.json["sessions"], done.json["left_alone"]) == (1, 2, 2)
    assert [one["session"] for one in done.json["not_restored"]] == [older]
    after = await contents(stack, stack.database)
    assert before.items() <= after.items()
    for session in (newer, older, gone):
        assert not await stack.entries_in(session)


async def test_of_a_damaged_part_nothing_is_written_and_the_rest_is(made, tmp_path):
    """
    Named with part and offset; with the part whole again, the restore goes on.
    """
    stack = made.stack
    await fresh(stack)
    command = everbus(stack)
    folder = tmp_path / "b"
    folder.mkdir()
    for file in made.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    part = sorted(folder.glob("sessions-*"))[0]
    whole = part.read_bytes()
    part.write_bytes(whole[:-40])
    in_it = [r.name for r in read_part(made.folder / part.name) if r.kind == "sessions"]

    checked = await command("restore", str(folder), "--check", "-o", "json")
    done = await command("restore", str(folder), "-o", "json")

    for told in (checked, done):
        assert told.code == 1
        [damage] = told.json["damaged"]
        assert damage["part"] == part.name
        assert 0 < damage["offset"] <= len(whole) - 40
    held = await contents(stack, stack.database)
    assert len(in_it) == FEW
    for session in in_it:
        assert ("sessions", session) not in held
        assert not any(one.get("session") == session for one in held.values())
    assert sum(name == "sessions" for name, _ in held) == 5 - FEW
    part.write_bytes(whole)
    assert (await command("restore", str(folder))).code == 0
    assert await contents(stack, stack.database) == await contents(stack, made.database)


async def test_a_missing_archive_is_named(made, tmp_path, monkeypatch):
    """
    Without its objects a backup still knows which the bucket has to have.
    """
    stack = made.stack
    command = everbus(stack, mongo_database=made.database)
    archived = made.conversations[0].id
    monkeypatch.setattr(taking, "PAUSE_S", 0.0)
    saved = {path: path.read_bytes() for path in stack.objects(archived)}
    assert (await command("backup", str(tmp_path / "b"))).code == 0
    await fresh(stack)
    lost = max(saved, key=lambda path: path.stat().st_size)
    lost.unlink()

    done = await everbus(stack)("restore", str(tmp_path / "b"), "-o", "json")
    broken = await command(
        "backup", str(tmp_path / "c"), "--with-archives", "-o", "json"
    )

    lost.write_bytes(saved[lost])
    assert done.code == 1
    [named] = done.json["not_restored"]
    assert named["session"] == archived
    assert lost.name in named["reason"]
    assert broken.code == 1
    assert [one["session"] for one in broken.json["unsettled"]] == [archived]
