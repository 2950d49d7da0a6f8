"""
How one process is, for probes and people: the same five routes on every role.

Everything here answers from memory, at once: whoever asks a thousand times a second
loads nothing but this process. What has to be asked is asked by loops of the process's
own, at their own pace. The form is that of draft-inadarei-api-health-check-06.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, NamedTuple

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

log = structlog.get_logger()

Status = Literal["pass", "warn", "fail"]
GRADES: dict[Status, int] = {"pass": 0, "warn": 1, "fail": 2}
MEDIA_TYPE = "application/health+json"
NOT_STARTED = "it has not started yet"


class Finding(NamedTuple):
    """
    How one thing is that the process depends on.

    Attributes:
        output: what is wrong, for people; no addresses and no secrets.
        value: what was observed, in *unit*.
    """

    status: Status
    output: str = ""
    value: float | None = None
    unit: str = ""


# Looks at what is known already; must not wait.
Look = Callable[[], Finding]


class Check(NamedTuple):
    """
    One thing that is looked at.

    Attributes:
        essential: whether the process is of no use while it fails; else that is a
            warning.
    """

    name: str
    look: Look
    essential: bool = False


class Health:
    """
    How a process is.

    Attributes:
        started: whether it has ever been ready; that does not get lost again.
    """

    def __init__(
        self,
        role: str,
        *checks: Check,
        stopping: Callable[[], bool] = lambda: False,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        Judge the process of *role* by *checks*.

        Args:
            stopping: whether it is about to end.
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
        Judge it by these, too.
        """
        self._checks += checks

    def why_not(self) -> str:
        """
        Why it cannot serve now; empty if it can.
        """
        if self._stopping():
            return "it is about to end"
        if not self.started:
            return NOT_STARTED
        failed = [
            f"{check.name}: {finding.output}"
            for check, finding in self._looked()
            if check.essential and finding.status == "fail"
        ]
        return "; ".join(failed)

    def told(self) -> dict[str, Any]:
        """
        The aggregate, with each check.
        """
        looked = self._looked()
        grades = [_weighed(check, finding) for check, finding in looked]
        told: dict[str, Any] = {
            "status": max(grades, key=GRADES.__getitem__, default="pass"),
            "version": self._release,
            "serviceId": f"everbus-{self.role}",
            "role": self.role,
            "stopping": self._stopping(),
            "checks": {c.name: [self._shown(c.name, f)] for c, f in looked},
        }
        if not self.started:
            told |= {"status": "fail", "output": NOT_STARTED}
        return told

    def _looked(self) -> list[tuple[Check, Finding]]:
        looked = [(check, _safely(check)) for check in self._checks]
        for check, finding in looked:
            known = self._since.get(check.name)
            if known is None or known[0] != finding.status:
                self._since[check.name] = (finding.status, self._now())
        return looked

    def _shown(self, name: str, finding: Finding) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "status": finding.status,
            "since": _iso(self._since[name][1]),
            "time": _iso(self._now()),
        }
        if finding.output and finding.status != "pass":
            shown["output"] = finding.output
        if finding.value is not None:
            shown["observedValue"] = finding.value
            shown["observedUnit"] = finding.unit
        return shown


def health_routes(health: Health) -> list[Route]:
    """
    The routes that tell of *health*; without authentication, like all probes.
    """

    async def livez(_: Request) -> Response:
        return _answer(200, {"status": "pass"})

    async def readyz(_: Request) -> Response:
        return _probe(health.why_not())

    async def startupz(_: Request) -> Response:
        return _probe("" if health.started else NOT_STARTED)

    async def whole(_: Request) -> Response:
        told = health.told()
        return _answer(503 if told["status"] == "fail" else 200, told)

    async def exposed(_: Request) -> Response:
        headers = {"content-type": CONTENT_TYPE_LATEST}
        return Response(generate_latest(), headers=headers)

    routes = {
        "/livez": livez,
        "/readyz": readyz,
        "/startupz": startupz,
        "/health": whole,
        "/metrics": exposed,
    }
    return [Route(path, served, methods=["GET"]) for path, served in routes.items()]


def _weighed(check: Check, finding: Finding) -> Status:
    if finding.status == "fail" and not check.essential:
        return "warn"
    return finding.status


def _safely(check: Check) -> Finding:
    try:
        return check.look()
    except Exception as error:  # a broken check must not hide the others
        log.exception("check.failed", check=check.name)
        return Finding("fail", f"the check itself failed: {type(error).__name__}")


def _probe(why_not: str) -> Response:
    if why_not:
        return _answer(503, {"status": "fail", "output": why_not})
    return _answer(200, {"status": "pass"})


def _answer(status: int, told: dict[str, Any]) -> Response:
    headers = {"cache-control": "no-store"}

    return JSONResponse(told, status, headers=headers, media_type=MEDIA_TYPE)


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def _release() -> str:
    try:
        return version("everbus")
    except PackageNotFoundError:
        return "unknown"
