"""
`everbus verify`: hot against warm against cold, online and without a write.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from everbus.compose.bus_access import bus_access
from everbus.compose.command_output import OutputOption, print_json
from everbus.compose.exit_codes import FINDING, USAGE, Failed
from everbus.compose.progress import Advance, counting_bar
from everbus.compose.replay_command import Output
from everbus.compose.sealing_settings import sealing_of
from everbus.compose.tier_settings import archives_of, warm_tier
from everbus.compose.verify.copies import CopyCheck
from everbus.compose.verify.hot_reader import HotReader
from everbus.compose.verify.violations import KINDS, MEANINGS, Kind, Violations
from everbus.gateway.store.hot_walk import hot_sessions
from everbus.gateway.store.sealed_copies import SealedCopies
from everbus.gateway.store.warm_roles import WarmTier

PAGE = 500
# Violations of each kind that are shown.
KEPT = 20
REMEDIES: dict[Kind, str] = {
    "lost": "stop writers of the session; restore it from a backup or an archive",
    "doubled": "nothing repairs it by itself; erase the second effect by a command",
    "forked": "compare both effects; a dead letter `diverged` holds the refused one",
    "gap": "restore the missing events or entries from a backup of MongoDB",
    "unequal": "MongoDB counts: suspend the session, and it returns as MongoDB has it",
    "stale": "suspend the session, and it returns as MongoDB has it",
    "damaged": "hot: delete the key, MongoDB's copy returns; cold: put the object back"
    "; a producer: restart its MAD, let it flush, then HDEL the record, never before",
}

_Session = Annotated[str | None, typer.Option("--session", help="Only this session.")]
_All = Annotated[bool, typer.Option("--all", help="Every session of every tier.")]
_Plan = Annotated[
    bool, typer.Option("--repair-plan", help="Also print what to do; nothing is done.")
]


class VerifyReport(msgspec.Struct, frozen=True):
    """
    The result of `everbus verify`.

    Attributes:
        sessions: how many were checked.
        counts: kind → number of violations.
        violations: the first of each kind.
        repair_plan: kind → remedy, if asked for.
    """

    sessions: int
    counts: dict[str, int]
    violations: list[dict[str, str | int]]
    repair_plan: dict[str, str] = {}


def verify(
    session: _Session = None,
    every: _All = False,
    repair_plan: _Plan = False,
    output: OutputOption = Output.table,
) -> None:
    """
    Compare the copies of sessions in Redis, MongoDB and the cold tier.

    Reads only, while the bus goes on. Checks that versions and seqs are contiguous,
    that each command had one effect, that copies are equal, checksums, and the
    producers' numbers. Needs the managers' EVERBUS_REDIS_URL, EVERBUS_MONGO_URL and
    EVERBUS_S3_…. The exit code is 1 with findings, and 3 if a tier is away.

    Example: everbus verify --all -o json
    """
    if every == (session is not None):
        raise Failed("name one session with --session ID, or say --all", USAGE)
    sessions, violations = asyncio.run(_verified(session))
    report = _report(sessions, violations, with_plan=repair_plan)
    _print(report, violations, output)
    if not violations.clean:
        raise typer.Exit(FINDING)


async def _verified(session: str | None) -> tuple[int, Violations]:
    violations = Violations(KEPT)
    async with (
        bus_access("verify") as access,
        sealing_of(access.settings) as sealing,
    ):
        warm = warm_tier(access.settings, sealing)
        if warm is None:
            raise Failed("set EVERBUS_MONGO_URL: there is nothing to compare", USAGE)
        archives = archives_of(access.settings, sealing=sealing)
        opened = None if sealing is None else sealing.opened_entries
        sealed = None if sealing is None else SealedCopies(sealing)
        hot = HotReader(access.wire, access.partitions, sealed)
        check = CopyCheck(
            warm, archives, hot.read, hot.is_settled, violations, opened=opened
        )
        try:
            url = access.settings.redis_url
            return await _run(hot, url, warm, check, session, violations), violations
        finally:
            warm.close()
            if archives is not None:
                archives.close()


async def _run(
    hot: HotReader,
    url: str,
    warm: WarmTier,
    check: CopyCheck,
    session: str | None,
    violations: Violations,
) -> int:
    await hot.load_windows(violations)
    if session is not None:
        if not await check.check(session):
            raise Failed(f"no tier has a session {session}", FINDING)
        return 1
    total = sum((await warm.counts()).states.values())
    with counting_bar("sessions", total) as advance:
        return await _every(check, warm, url, advance)


async def _every(check: CopyCheck, warm: WarmTier, url: str, advance: Advance) -> int:
    sessions = 0
    async for session_id in _ids(warm):
        sessions += await check.check(session_id)
        advance(1)
    async for session_id in hot_sessions(url):
        # Those of MongoDB are checked already; here are the ones that it lacks.
        if session_id not in await warm.sessions([session_id]):
            sessions += await check.check(session_id)
    return sessions


async def _ids(warm: WarmTier) -> AsyncIterator[str]:
    after = ""
    while page := await warm.every(after, PAGE):
        for one in page:
            yield one.session.id
        after = page[-1].session.id


def _report(sessions: int, violations: Violations, *, with_plan: bool) -> VerifyReport:
    found = [kind for kind in KINDS if violations.counts[kind]]
    plan: dict[str, str] = {k: REMEDIES[k] for k in found if k in REMEDIES}

    return VerifyReport(
        sessions,
        {kind: violations.counts[kind] for kind in found},
        [msgspec.to_builtins(one) for one in violations.first],
        plan if with_plan else {},
    )


def _print(report: VerifyReport, violations: Violations, output: Output) -> None:
    if output is Output.json:
        print_json(report)
        return
    # Without markup: brackets in ids are not colours.
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    for one in violations.first:
        console.print(str(one))
    for kind, remedy in report.repair_plan.items():
        console.print(f"{kind} ({MEANINGS[kind]}): {remedy}")  # type: ignore[index]
    console.print(f"{report.sessions:,} sessions, {violations.line()}")
