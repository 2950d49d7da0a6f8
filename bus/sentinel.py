"""
The primary of a bus behind Redis Sentinels.

A primary counts if a majority of the named Sentinels names it, with the newest config
epoch of all answers. A Sentinel that is cut off names an old primary. A Sentinel with a
newer epoch, or in the middle of a failover, shows that the primary of the others is
about to lose its writes.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from redis import ConnectionPool as BlockingPool
from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ConnectionError, RedisError
from redis.retry import Retry as BlockingRetry

# Scheme of a bus behind Sentinels → that of each server.
SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
DEFAULT_PORT = 26379
# Each Sentinel has so long to answer; all are asked at once.
ASK_TIMEOUT_S = 1.0
USER, PASSWORD = "sentinel_username", "sentinel_password"

FORM = "redis+sentinel://[user[:password]@]host:26379,host,host/NAME[?db=0]"
# Behind a majority of answers the others have so long.
LAST_ANSWERS_S = 0.1

_ADDRESS = "GET-MASTER-ADDR-BY-NAME"
_MOVING = "failover_in_progress"
_DOWN = frozenset({"s_down", "o_down"})


class NoPrimary(ConnectionError):
    """
    The Sentinels name no primary that can serve now.
    """


def is_sentinel(url: str) -> bool:
    """
    Whether *url* names Sentinels, by its scheme.
    """
    return url.partition("://")[0] in SCHEMES


class SentinelAddress(NamedTuple):
    """
    A parsed Sentinel URL.

    Attributes:
        sentinels: `host:port` of each Sentinel in the URL.
        name: the name that the Sentinels have for the bus.
        user: user part for the servers, with its `@`; not for the Sentinels.
        login: user and password for the Sentinels; empty without.
        options: query parameters for the servers, such as `db`.
    """

    sentinels: tuple[str, ...]
    name: str
    scheme: str
    user: str
    login: tuple[str, str]
    options: Mapping[str, str]

    @property
    def majority(self) -> int:
        """
        Number of Sentinels that must agree.
        """
        return len(self.sentinels) // 2 + 1

    def server_url(self, address: str) -> str:
        """
        URL of one server, with the credentials and options of the bus.
        """
        query = f"?{urlencode(self.options)}" if self.options else ""

        return f"{self.scheme}://{self.user}{address}{query}"

    def sentinel_url(self, address: str) -> str:
        """
        URL of one Sentinel: its own credentials, the same TLS options.
        """
        name, password = self.login
        user = f"{quote(name, safe='')}:{quote(password, safe='')}@" if password else ""
        tls = {n: v for n, v in self.options.items() if n.startswith("ssl")}
        query = f"?{urlencode(tls)}" if tls else ""

        return f"{self.scheme}://{user}{address}{query}"

    def __repr__(self) -> str:
        return f"SentinelAddress({self.name}, {', '.join(self.sentinels)})"

    def __rich_repr__(self) -> Any:
        # rich prints locals in tracebacks, and the other fields hold passwords.
        yield self.name
        yield from self.sentinels


def sentinel_address(url: str) -> SentinelAddress:
    """
    Parse *url*.

    Raises:
        ValueError: it names no Sentinel, or not the name of the bus.
    """
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    name = unquote(parts.path.strip("/"))
    named = tuple(_with_port(host) for host in hosts.split(",") if host)
    if not named or not name or "/" in name:
        raise ValueError(f"a bus behind Sentinels has a URL of the form {FORM}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    login = options.pop(USER, ""), options.pop(PASSWORD, "")

    return SentinelAddress(
        named, name, SCHEMES[parts.scheme], user + at, login, options
    )


def with_sentinel_login(url: str, user: str, password: str) -> str:
    """
    *url* with the credentials for its Sentinels, unless it has some.

    They travel in the URL, so that every connection of a process finds them there.
    """
    if not password or not is_sentinel(url) or f"{PASSWORD}=" in url:
        return url
    login = {USER: user, PASSWORD: password} if user else {PASSWORD: password}

    return f"{url}{'&' if '?' in url else '?'}{urlencode(login)}"


class SentinelAnswer(NamedTuple):
    """
    The primary as one Sentinel sees it.

    Attributes:
        moving: it is about to promote another server.
    """

    epoch: int
    address: str
    down: bool = False
    moving: bool = False


async def find_primary(bus: SentinelAddress) -> str:
    """
    `host:port` of the primary that a majority of the Sentinels name.

    Raises:
        NoPrimary: no majority answers and agrees, or the primary is down or changes.
        AuthenticationError: every Sentinel refuses the credentials.
    """
    asked = [asyncio.create_task(_ask(bus, one)) for one in bus.sentinels]
    try:
        answers, failures = await _gathered(asked, bus.majority)
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    if len(answers) < bus.majority:
        raise _refusal(bus, answers, failures)

    return agreed_primary(answers, bus.majority)


async def _gathered(
    asked: list[asyncio.Task[SentinelAnswer]], majority: int
) -> tuple[list[SentinelAnswer], list[BaseException]]:
    """
    The answers and the failures; behind a majority only for a moment more.
    """
    done: set[asyncio.Task[SentinelAnswer]] = set()
    waiting = set(asked)
    while waiting:
        enough = sum(task.exception() is None for task in done) >= majority
        timeout_s = LAST_ANSWERS_S if enough else None
        some, waiting = await asyncio.wait(
            waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        done |= some
        if not some:
            break
    errors = [error for task in done if (error := task.exception()) is not None]

    return [task.result() for task in done if task.exception() is None], errors


def agreed_primary(answers: list[SentinelAnswer], majority: int) -> str:
    """
    The address with the newest config epoch, if a majority names it as up.

    Raises:
        NoPrimary: there is none now; the error says why.
    """
    epoch = max(answer.epoch for answer in answers)
    newest = [answer for answer in answers if answer.epoch == epoch]
    address, votes = Counter(one.address for one in newest).most_common(1)[0]
    if any(one.moving for one in newest):
        raise NoPrimary(f"the Sentinels move the bus away from {address}")
    if votes < majority:
        raise NoPrimary(
            f"{votes} of {len(answers)} Sentinels know the newest primary {address} "
            f"yet, and {majority} must"
        )
    if sum(one.down for one in newest) >= majority:
        # Else a connection to a hung server would wait while another one takes over.
        raise NoPrimary(f"the Sentinels say that {address} is down")
    return address


def _refusal(
    bus: SentinelAddress, answers: list[SentinelAnswer], failures: list[BaseException]
) -> RedisError:
    if failures and all(isinstance(one, AuthenticationError) for one in failures):
        return AuthenticationError(
            f"the Sentinels refuse: {failures[0]}; set EVERBUS_SENTINEL_PASSWORD "
            "(and EVERBUS_SENTINEL_USERNAME)"
        )
    why = f"; {failures[0]}" if failures else ""

    return NoPrimary(
        f"{len(answers)} of {len(bus.sentinels)} Sentinels name a primary of "
        f"{bus.name}, and {bus.majority} must agree{why}"
    )


def find_primary_blocking(bus: SentinelAddress) -> str:
    """
    The same without an event loop; the Sentinels are asked one after the other.

    Raises:
        NoPrimary, AuthenticationError: as `find_primary`.
    """
    answers: list[SentinelAnswer] = []
    failures: list[BaseException] = []
    for sentinel in bus.sentinels:
        try:
            answers.append(_ask_blocking(bus, sentinel))
        except (RedisError, OSError, ValueError) as error:
            failures.append(error)
    if len(answers) < bus.majority:
        raise _refusal(bus, answers, failures)

    return agreed_primary(answers, bus.majority)


def _ask_blocking(bus: SentinelAddress, sentinel: str) -> SentinelAnswer:
    pool = BlockingPool.from_url(
        bus.sentinel_url(sentinel),
        protocol=2,
        decode_responses=True,
        socket_timeout=ASK_TIMEOUT_S,
        socket_connect_timeout=ASK_TIMEOUT_S,
        retry=BlockingRetry(NoBackoff(), 0),
        driver_info=None,
    )
    connection: Any = pool.make_connection()  # redis-py types none of its calls
    try:
        connection.connect()
        connection.send_command("SENTINEL", "MASTER", bus.name)
        reply = connection.read_response()
        connection.send_command("SENTINEL", _ADDRESS, bus.name)
        place = connection.read_response()
    finally:
        connection.disconnect()

    return _answer(dict(zip(reply[::2], reply[1::2], strict=True)), place)


async def _ask(bus: SentinelAddress, sentinel: str) -> SentinelAnswer:
    async with asyncio.timeout(ASK_TIMEOUT_S):
        connection = await open_sentinel(bus, sentinel)
        try:
            await connection.send_command("SENTINEL", "MASTER", bus.name)
            reply = await connection.read_response()
            # During a failover only this one names the promoted server.
            await connection.send_command("SENTINEL", _ADDRESS, bus.name)
            place = await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)

    return _answer(dict(zip(reply[::2], reply[1::2], strict=True)), place)


async def open_sentinel(bus: SentinelAddress, sentinel: str) -> Connection:
    """
    A connection to one Sentinel; the caller sets the deadline.
    """
    pool = ConnectionPool.from_url(
        bus.sentinel_url(sentinel),
        protocol=2,
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),
        driver_info=None,
    )
    # redis-py types neither of the two calls.
    connection: Connection = pool.make_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException:
        await connection.disconnect(nowait=True)
        raise

    return connection


def _answer(fields: Mapping[str, str], place: Sequence[str]) -> SentinelAnswer:
    host, port = place
    flags = fields["flags"].split(",")
    promoted = [fields["ip"], fields["port"]] != list(place)

    return SentinelAnswer(
        epoch=int(fields["config-epoch"]),
        address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        down=not promoted and not _DOWN.isdisjoint(flags),
        moving=not promoted and _MOVING in flags,
    )


def _with_port(host: str) -> str:
    _, colon, port = host.rpartition(":")

    return host if colon and port.isdigit() else f"{host}:{DEFAULT_PORT}"
