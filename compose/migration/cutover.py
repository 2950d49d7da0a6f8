"""
Cut-over: which store leads for which user, in a file that every MAD reads.

A change is announced some seconds ahead. Around its moment writes of the users that
change hands wait (HOLD_S on both sides), so that none goes to the old store while
another goes to everbus. Clocks of the hosts must agree within HOLD_S.
"""

import hashlib
import os
from pathlib import Path
from typing import Literal

import msgspec

from everbus.compose.exit_codes import CONFLICT, USAGE, Failed

Lead = Literal["old", "everbus"]
HOLD_S = 2.0
# How often a MAD looks at the file.
LOOK_EVERY_S = 1.0
LEAST_AHEAD_S = HOLD_S + 2 * LOOK_EVERY_S + 1
MAX_USERS = 100_000


class Leads(msgspec.Struct, frozen=True):
    """
    Who leads: users by name, else a percentage of all by the hash of their name.
    """

    percent: float = 0.0
    users: dict[str, Lead] = {}

    def of(self, user: str) -> Lead:
        """
        The store that leads for *user*; the same user in every process.
        """
        if user in self.users:
            return self.users[user]
        share = int.from_bytes(hashlib.sha256(user.encode()).digest()[:4]) / 2**32

        return "everbus" if share * 100 < self.percent else "old"


class CutoverPlan(msgspec.Struct, frozen=True, kw_only=True):
    """
    The content of the file: what holds now, and what from *at_s* on (Unix time).
    """

    now: Leads = Leads()
    next: Leads = Leads()
    at_s: float = 0.0

    def at(self, moment_s: float) -> Leads:
        """
        Who leads at *moment_s*.
        """
        return self.next if moment_s >= self.at_s else self.now

    def hold_s(self, user: str, moment_s: float) -> float:
        """
        How long a write of *user* that begins at *moment_s* has to wait.
        """
        if self.now.of(user) == self.next.of(user):
            return 0.0
        if abs(moment_s - self.at_s) >= HOLD_S:
            return 0.0
        return self.at_s + HOLD_S - moment_s

    def changed(
        self,
        *,
        users: dict[str, Lead],
        percent: float | None,
        moment_s: float,
        ahead_s: float,
    ) -> "CutoverPlan":
        """
        The plan with another change, *ahead_s* from now.

        Raises:
            Failed: the change before has not come into force, or a value is wrong.
        """
        if moment_s < self.at_s + HOLD_S:
            raise Failed(
                f"the last change holds in {self.at_s + HOLD_S - moment_s:.0f} s; "
                "try again then",
                CONFLICT,
            )
        if ahead_s < LEAST_AHEAD_S:
            raise Failed(
                f"--ahead {ahead_s:g}: wanted at least {LEAST_AHEAD_S:g} s", USAGE
            )
        before = self.next
        leads = Leads(
            before.percent if percent is None else percent, before.users | users
        )
        if not 0 <= leads.percent <= 100 or len(leads.users) > MAX_USERS:
            raise Failed(
                f"wanted 0 to 100 percent and at most {MAX_USERS:,} users by name",
                USAGE,
            )
        return CutoverPlan(now=before, next=leads, at_s=moment_s + ahead_s)


class CutoverFile:
    """
    The plan on disk; read again when the file changed.

    Attributes:
        trouble: why the file cannot be read; the last plan goes on to hold.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble = ""
        self._plan = CutoverPlan()
        self._seen: tuple[int, int] | None = None
        self._looked_s = float("-inf")

    def plan(self, moment_s: float) -> CutoverPlan:
        """
        The plan, at most LOOK_EVERY_S old; without a file the old store leads.
        """
        if abs(moment_s - self._looked_s) >= LOOK_EVERY_S:
            self._looked_s = moment_s
            self._look()
        return self._plan

    def load(self) -> CutoverPlan:
        """
        The plan in the file, now.

        Raises:
            Failed: the file is no plan.
        """
        self._look()
        if self.trouble:
            raise Failed(f"{self.path}: {self.trouble}; wanted a cut-over file", USAGE)
        return self._plan

    def save(self, plan: CutoverPlan) -> None:
        """
        Replace the file.
        """
        draft = self.path.with_name(f"{self.path.name}.new")
        with draft.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(plan)))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)

    def _look(self) -> None:
        try:
            stat = self.path.stat()
            seen = (stat.st_mtime_ns, stat.st_ino)
            if seen != self._seen:
                content = self.path.read_bytes()
                self._plan = msgspec.json.decode(content, type=CutoverPlan)
                self._seen = seen
            self.trouble = ""
        except FileNotFoundError:
            # Gone after it was there: what it said goes on to hold.
            self.trouble = "the file is gone" if self._seen else ""
        except (OSError, msgspec.MsgspecError) as error:
            self.trouble = str(error)
