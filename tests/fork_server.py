"""
The preloaded parent of the tests' processes: it has imported everbus once, and forks
a child for each request, in 20 ms instead of a second of imports.

A request is one message on the socket of argv[1]: the arguments of the interpreter,
the environment, the folder, and with them four descriptors: stdin, stdout, stderr,
and a socket on which this server writes the child's pid and later its exit status.
The server ends when the socket does, with the tests.

The parent runs no thread and no event loop, and makes no random number, so that a
child finds what a fresh interpreter would.
"""

import gc
import io
import json
import os
import runpy
import selectors
import socket
import struct
import sys
import types
from contextlib import suppress
from typing import Any

MESSAGE_BYTES = 1 << 20
# Both are on the report socket: the child's pid, then its exit code.
NUMBER = struct.Struct("!q")
# The command, and what its roles import only when they run.
PRELOADED = (
    "everbus.compose.cli",
    "everbus.compose.edge_role",
    "everbus.gateway.store.cold.s3",
    "everbus.gateway.store.mongo.warm",
    "uvicorn.protocols.http.h11_impl",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
)


class ForkServer:
    """
    Forks for the tests that hold the other end of *requests*.
    """

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._ready = selectors.PollSelector()
        self._ready.register(requests, selectors.EVENT_READ)
        self._reports: dict[int, tuple[int, socket.socket]] = {}

    def serve(self) -> dict[str, Any] | None:
        """
        Serve until the tests end (None); in a child, return what it has to run.
        """
        while True:
            for key, _ in self._ready.select():
                if key.fileobj is not self._requests:
                    self._report_end(key.fd)
                    continue
                message, given, _, _ = socket.recv_fds(self._requests, MESSAGE_BYTES, 4)
                if not message:
                    return None
                if self._fork(*given):
                    return json.loads(message)

    def _fork(self, *given: int) -> bool:
        """
        Whether this is the child, whose standard streams are *given*.
        """
        *streams, reported = given
        report = socket.socket(fileno=reported)
        pid = os.fork()
        if pid == 0:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            self._close(report, *streams)
            reopen_outputs()
            return True
        for stream in streams:
            os.close(stream)
        ended = os.pidfd_open(pid)
        self._reports[ended] = pid, report
        self._ready.register(ended, selectors.EVENT_READ)
        report.sendall(NUMBER.pack(pid))
        return False

    def _close(self, report: socket.socket, *streams: int) -> None:
        self._ready.close()
        self._requests.close()
        report.close()
        for ended, (_, other) in self._reports.items():
            os.close(ended)
            other.close()
        for stream in streams:
            os.close(stream)

    def _report_end(self, ended: int) -> None:
        pid, report = self._reports.pop(ended)
        self._ready.unregister(ended)
        os.close(ended)
        _, status = os.waitpid(pid, 0)
        with report, suppress(OSError):  # a test may have ended before its process
            report.sendall(NUMBER.pack(os.waitstatus_to_exitcode(status)))


def reopen_outputs() -> None:
    """
    Make `sys.stdout` and `sys.stderr` anew; the parent's know its own files, and
    whether one can seek in them.
    """
    sys.stdout, sys.stderr = map(_output, (1, 2))


def _output(number: int) -> io.TextIOWrapper:
    # Unbuffered: what a killed process has said is read.
    return io.TextIOWrapper(io.FileIO(number, "w", closefd=False), write_through=True)


def run(request: dict[str, Any]) -> None:
    """
    What `python *arguments*` does, in this process.
    """
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    option, what, *arguments = request["arguments"]
    sys.argv = [option, *arguments]
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(what, "<string>", "exec"), main.__dict__)  # noqa: S102


def preload() -> None:
    for name in PRELOADED:
        __import__(name)
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    preload()
    asked = ForkServer(socket.socket(fileno=int(sys.argv[1]))).serve()
    if asked is not None:
        run(asked)
