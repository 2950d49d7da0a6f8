"""
Health of one process, for probes and people.

Everything here answers from memory at once: a thousand probes per second load this
process alone. Loops of the process ask the bus and the tiers, at their own pace. The
form is that of draft-inadarei-api-health-check-06.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, NamedTuple

import structlog

log = structlog.get_logger()

Status = Literal["pass", "warn", "fail"]
GRADES: dict[Status, int] = {"pass": 0, "warn": 1, "fail": 2}
NOT_STARTED = "it has not started yet"


class CheckResult(NamedTuple):
    """
    The state of one dependency of the process.

    Attributes:
        output: the fault, for people; no addresses and no secrets.
        value: the observed value, in *unit*.
    """

    status: Status
    output: str = ""
    value: float | None = None
    unit: str = ""


# Returns a known result; must not wait.
ReadResult = Callable[[], CheckResult]


class Check(NamedTuple):
    """
    One check of the process.

    Attributes:
        essential: whether the process is useless while it fails; a failure of any
            other check is a warning.
    """

    name: str
    result: ReadResult
    essential: bool = False


class ProcessHealth:
    """
    The health of a process.

    Attributes:
        started: whether it has ever been ready; never reset.
    """

    def __init__(
        self,
        role: str,
        *checks: Check,
        stopping: Callable[[], bool] = lambda: False,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        Check the process of *role* by *checks*.

        Args:
            stopping: whether the process is about to end.
            now: seconds since 1970.
        """
        self.role = role
        self.started = False
        self._checks = [*checks]
        self._stopping = stopping
        self._now = now
        self._since: dict[str, tuple[Status, float]] = {}
        self._release = _release()

    def add(self, *checks: Check) -> None:
        """
        Add checks.
        """
        self._checks += checks

    def unready_reason(self) -> str:
        """
        The reason why it cannot serve now; empty if it can.
        """
        if self._stopping():
            return "it is about to end"
        if not self.started:
            return NOT_STARTED
        failed = [
            f"{check.name}: {found.output}"
            for check, found in self._results()
            if check.essential and found.status == "fail"
        ]
        return "; ".join(failed)

    def report(self) -> dict[str, Any]:
        """
        The overall status and each check.
        """
        results = self._results()
        grades = [_weighted(check, found) for check, found in results]
        report: dict[str, Any] = {
            "status": max(grades, key=GRADES.__getitem__, default="pass"),
            "version": self._release,
            "serviceId": f"everbus-{self.role}",
            "role": self.role,
            "stopping": self._stopping(),
            "checks": {c.name: [self._check_document(c.name, f)] for c, f in results},
        }
        if not self.started:
            report |= {"status": "fail", "output": NOT_STARTED}
        return report

    def _results(self) -> list[tuple[Check, CheckResult]]:
        results = [(check, _safe_result(check)) for check in self._checks]
        for check, found in results:
            known = self._since.get(check.name)
            if known is None or known[0] != found.status:
                self._since[check.name] = (found.status, self._now())
        return results

    def _check_document(self, name: str, found: CheckResult) -> dict[str, Any]:
        document: dict[str, Any] = {
            "status": found.status,
            "since": _iso(self._since[name][1]),
            "time": _iso(self._now()),
        }
        if found.output and found.status != "pass":
            document["output"] = found.output
        if found.value is not None:
            document["observedValue"] = found.value
            document["observedUnit"] = found.unit
        return document


def _weighted(check: Check, found: CheckResult) -> Status:
    if found.status == "fail" and not check.essential:
        return "warn"
    return found.status


def _safe_result(check: Check) -> CheckResult:
    try:
        return check.result()
    except Exception as error:  # a broken check must not hide the others
        log.exception("check.failed", check=check.name)
        return CheckResult("fail", f"the check itself failed: {type(error).__name__}")


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def _release() -> str:
    try:
        return version("everbus")
    except PackageNotFoundError:
        return "unknown"
