"""
Python processes of the tests, forked from a parent that has imported everbus.

`start_python` stands for `asyncio.create_subprocess_exec(sys.executable, ...)`. It
starts an interpreter where nothing can be forked: elsewhere than on Linux, and
where coverage is measured, which patches what an interpreter starts.
"""

import asyncio
import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO

from tests.fork_server import NUMBER

HOUSE = Path(__file__).parent.parent
FORKS = sys.platform == "linux" and "COVERAGE_PROCESS_CONFIG" not in os.environ
PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL

Stream = int | IO[bytes] | None


async def start_python(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path = HOUSE,
    **streams: Stream,
) -> "Process":
    """
    Start `python *arguments*`, `-c PROGRAM ...` or `-m MODULE ...`; streams are
    those of `subprocess`. Whoever starts it ends it.
    """
    given = dict(os.environ if env is None else env)
    if FORKS and arguments[0] in ("-c", "-m"):
        return await _forked(arguments, given, cwd, streams)
    return await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=given, cwd=cwd, **streams
    )


class ForkedProcess:
    """
    As much of `asyncio.subprocess.Process` as the tests use.
    """

    def __init__(self, pid: int, pipes: "_Pipes") -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin, self.stdout, self.stderr = pipes.stdin, pipes.stdout, pipes.stderr
        self._pipes = pipes
        self._ended = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        """
        Wait for its end; its exit code, negative for a signal.
        """
        return await asyncio.shield(self._ended)

    async def communicate(self, given: bytes | None = None) -> tuple[bytes, bytes]:
        """
        Write *given*, read both outputs to their ends, wait for the process's.
        """
        if self.stdin is not None:
            if given is not None:
                self.stdin.write(given)
            self.stdin.close()
        out, err = await asyncio.gather(*map(_all_of, (self.stdout, self.stderr)))
        await self.wait()
        return out, err

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def ended(self, code: int) -> None:
        """
        Note that it has ended with *code*.
        """
        self.returncode = code
        self._pipes.close_stdin()
        if not self._ended.done():
            self._ended.set_result(code)


Process = asyncio.subprocess.Process | ForkedProcess


class _Pipes:
    """
    The three streams of a process: our ends as asyncio's, its ends as descriptors.
    """

    def __init__(self) -> None:
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self.theirs: list[int] = []

    @classmethod
    async def opened(cls, streams: Mapping[str, Stream]) -> "_Pipes":
        made = cls()
        made.theirs.append(await made._input(streams.get("stdin")))
        for number, name in enumerate(("stdout", "stderr"), start=1):
            made.theirs.append(await made._output(name, number, streams.get(name)))
        return made

    def close_theirs(self) -> None:
        for descriptor in self.theirs:
            os.close(descriptor)

    def close_stdin(self) -> None:
        if self.stdin is not None:
            self.stdin.close()

    async def _input(self, stream: Stream) -> int:
        if stream != PIPE:
            return _descriptor(stream, 0)
        theirs, ours = os.pipe()
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(ours, "wb", 0)
        )
        self.stdin = asyncio.StreamWriter(transport, protocol, None, loop)
        return theirs

    async def _output(self, name: str, number: int, stream: Stream) -> int:
        if stream != PIPE:
            return _descriptor(stream, number)
        ours, theirs = os.pipe()
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", 0)
        )
        setattr(self, name, reader)
        return theirs


def _descriptor(stream: Stream, inherited: int) -> int:
    if stream == DEVNULL:
        return os.open(os.devnull, os.O_RDWR)
    if stream is None:
        return os.dup(inherited)
    return os.dup(stream if isinstance(stream, int) else stream.fileno())


async def _all_of(output: asyncio.StreamReader | None) -> bytes:
    return b"" if output is None else await output.read()


async def _forked(
    arguments: tuple[str, ...],
    env: dict[str, str],
    cwd: Path,
    streams: Mapping[str, Stream],
) -> ForkedProcess:
    pipes = await _Pipes.opened(streams)
    report, theirs = socket.socketpair()
    request = {"arguments": arguments, "env": env, "cwd": str(cwd)}
    try:
        socket.send_fds(
            _server(), [json.dumps(request).encode()], [*pipes.theirs, theirs.fileno()]
        )
    finally:
        theirs.close()
        pipes.close_theirs()
    report.setblocking(False)
    loop = asyncio.get_running_loop()
    [pid] = NUMBER.unpack(await loop.sock_recv(report, NUMBER.size))
    process = ForkedProcess(pid, pipes)

    def ended() -> None:
        told = report.recv(NUMBER.size)
        loop.remove_reader(report)
        report.close()
        # Nothing told: the server itself was killed, and nobody knows.
        process.ended(NUMBER.unpack(told)[0] if told else -signal.SIGKILL)

    loop.add_reader(report, ended)
    return process


@cache
def _server() -> socket.socket:
    """
    The socket for requests to this process's server, which it outlives by no time.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = {n: v for n, v in os.environ.items() if not n.startswith("EVERBUS_")}
    with theirs:
        # A session of its own: Ctrl-C is for the tests, which end what they started.
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())],
            cwd=HOUSE,
            env={**env, "PYTHONUNBUFFERED": "1"},
            pass_fds=[theirs.fileno()],
            stdin=DEVNULL,
            start_new_session=True,
        )

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return ours
