"""
The plan of a bench: its calls, their number, rate and duration.
"""

import math
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from everbus.bus.messages import Durability
from everbus.compose.exit_codes import USAGE, Failed

# The SDK's calls, by the names that they have there.
CALLS = (
    *("append", "append_and_wait", "get_session"),
    *("timeline", "update_later", "update_session"),
)
# Calls without a reply: they end when they are on the bus.
UNANSWERED = frozenset({"append", "update_later"})

MAX_SECONDS = 24 * 3600.0
MAX_MADS = 200
MAX_SESSIONS = 100_000
# An update's text is part of the hot state, which has 48 KiB.
MAX_BYTES = 32 * 1024
MAX_IN_FLIGHT = 10_000
MAX_WEIGHT = 1_000
# The expectations of all MADs in all sessions stay below 1 GB.
MAX_DEALINGS = 1_000_000


class Workload(StrEnum):
    """
    Mixes that have a name.
    """

    mix = "mix"
    publishes = "publishes"
    requests = "requests"
    updates = "updates"
    appends = "appends"
    reads = "reads"


MIXES: Mapping[Workload, Mapping[str, int]] = {
    Workload.mix: {
        "update_session": 4,
        "append": 3,
        "append_and_wait": 1,
        "get_session": 1,
        "timeline": 1,
    },
    Workload.publishes: {"update_later": 1},
    Workload.requests: {"get_session": 1},
    Workload.updates: {"update_session": 1},
    Workload.appends: {"append": 1, "append_and_wait": 1},
    Workload.reads: {"get_session": 1, "timeline": 1},
}


class BenchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """
    One bench, as its user wants it.

    Attributes:
        mix: call of the SDK → its share.
        seconds: how long is measured; warm_up_s comes before.
        rate: commands a second, sent when they are due; None: as fast as they go.
        bytes: of the text in each update and append.
        in_flight: how many commands are under way at once, at most.
        expect: updates expect the last version that a reply has shown.
        limit: how many commands are sent, at most.
        seed: decides which call goes to which session.
    """

    mix: dict[str, int]
    seconds: float = 10.0
    warm_up_s: float = 1.0
    rate: float | None = None
    mads: int = 4
    sessions: int = 100
    bytes: int = 300
    in_flight: int = 64
    expect: bool = False
    durability: Durability = "hot"
    timeout_s: float = 10.0
    limit: int = 1_000_000
    seed: int = 0


def mix_in(text: str) -> dict[str, int]:
    """
    The mix that *text* says, such as `update=5,append=4`; `_session` may be left out.

    Raises:
        Failed: a call is unknown or given twice, or a share is no whole number.
    """
    mix: dict[str, int] = {}
    for part in text.split(","):
        given, _, share = (word.strip() for word in part.partition("="))
        name = given if given in CALLS else f"{given}_session"
        if name not in CALLS:
            raise Failed(
                f"--mix: {given!a:.40} is no call; wanted {', '.join(CALLS)}", USAGE
            )
        if name in mix:
            raise Failed(f"--mix: {name} is given twice; add its shares up", USAGE)
        if not (share.isascii() and share.isdigit() and 0 < int(share) <= MAX_WEIGHT):
            raise Failed(
                f"--mix: {name}={share!a:.40}; wanted a whole number from 1 to "
                f"{MAX_WEIGHT}, as in {name}=5",
                USAGE,
            )
        mix[name] = int(share)

    return mix


def checked(plan: BenchPlan) -> BenchPlan:
    """
    *plan*, if it can be carried out.

    Raises:
        Failed: it names the option, the accepted and the given value.
    """
    _check("--seconds", plan.seconds, MAX_SECONDS)
    _check("--timeout", plan.timeout_s, 600.0)
    if plan.warm_up_s:
        _check("--warm-up", plan.warm_up_s, MAX_SECONDS)
    if plan.rate is not None:
        _check("--rate", plan.rate, 1_000_000.0)
    if plan.mads * plan.sessions > MAX_DEALINGS:
        raise Failed(
            f"--mads {plan.mads} times --sessions {plan.sessions} is more than "
            f"{MAX_DEALINGS:,}, and each pair has to be remembered; take fewer",
            USAGE,
        )
    if plan.expect and "update_session" not in plan.mix:
        raise Failed("--expect is about update_session, which is not in --mix", USAGE)

    return plan


def check_own_stack(plan: BenchPlan, own: bool, every_s: float | None) -> None:
    """
    Refuse kills of replicas that are not our own, or that would come too late, and
    replies that a stack of the bench's own cannot give.
    """
    if own and plan.durability != "hot":
        raise Failed(
            f"--durability {plan.durability}: the stack of --own-stack has neither an "
            "archiver nor copies of Redis that could answer; take hot, or another bus",
            USAGE,
        )
    if every_s is None:
        return
    _check("--kill-every", every_s, MAX_SECONDS)
    if not own:
        raise Failed(
            "--kill-every kills replicas that this bench has started itself, and none "
            "else. Remedy: add --own-stack, or kill yours by hand",
            USAGE,
        )
    if every_s >= plan.warm_up_s + plan.seconds:
        raise Failed(
            f"--kill-every {every_s:g}: nothing would be killed within "
            f"{plan.warm_up_s + plan.seconds:g} s; take less, or more --seconds",
            USAGE,
        )


def _check(option: str, value: float, most: float) -> None:
    if not (math.isfinite(value) and 0 < value <= most):
        raise Failed(f"{option} {value:g}: wanted above 0, at most {most:g}", USAGE)
