"""
A network that loses packets, for a server in a network namespace of its own.

Two TUN devices, one here and one in the namespace, and a thread that carries packets
from one to the other and drops some of them: so TCP itself sends again, waits longer
and longer, and delivers late. Needs Linux, root and `ip`; `tc netem` would do the
same, but many kernels are built without it.
"""

import fcntl
import os
import random
import select
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

# Of the range for benchmarks (RFC 2544): nobody else uses it here.
HERE, THERE = "198.18.12.1", "198.18.12.2"
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_PACKET_BYTES = 65_536
_LOOK_S = 0.2


def why_not() -> str:
    """
    Why this machine cannot do it; empty if it can.
    """
    if shutil.which("ip") is None:
        return "packet loss needs the program ip (iproute2)"
    if os.geteuid() != 0:
        return "packet loss needs root, for a network namespace"
    try:
        with _namespace(), _tun("everbus-try"):
            return ""
    except OSError as error:
        return f"packet loss needs TUN devices: {error}"
    except subprocess.CalledProcessError as error:
        return f"packet loss needs network namespaces: {error.stderr.strip()}"


class LossyLink:
    """
    The link between here and the namespace.

    Attributes:
        namespace: its name, for `ip netns exec`.
        share: the share of packets that get lost, each way.
        lost: how many were.
    """

    def __init__(self, namespace: str, ends: tuple[int, int], seed: int) -> None:
        self.namespace = namespace
        self.share = 0.0
        self.lost = 0
        self._ends = ends
        self._chance = random.Random(seed)
        self._over = threading.Event()

    def carry(self) -> None:
        """
        Carry packets until `end`.
        """
        other = {self._ends[0]: self._ends[1], self._ends[1]: self._ends[0]}
        while not self._over.is_set():
            for end in select.select(self._ends, (), (), _LOOK_S)[0]:
                packet = os.read(end, _PACKET_BYTES)
                if self._chance.random() < self.share:
                    self.lost += 1
                    continue
                with suppress(OSError):  # one end is not up yet
                    os.write(other[end], packet)

    def end(self) -> None:
        """
        Carry no more.
        """
        self._over.set()


@contextmanager
def lossy_link(seed: int = 7) -> Iterator[LossyLink]:
    """
    A namespace that only a link reaches: HERE is our address, THERE the other one's.
    """
    with ExitStack() as ends:
        name = ends.enter_context(_namespace())
        near = ends.enter_context(_tun("everbus-near"))
        far = ends.enter_context(_tun("everbus-far"))
        _run("link", "set", "everbus-far", "netns", name)
        _run("addr", "add", HERE, "peer", THERE, "dev", "everbus-near")
        _run("link", "set", "everbus-near", "up")
        inside = ("-n", name)
        _run(*inside, "addr", "add", THERE, "peer", HERE, "dev", "everbus-far")
        _run(*inside, "link", "set", "everbus-far", "up")
        _run(*inside, "link", "set", "lo", "up")
        link = LossyLink(name, (near, far), seed)
        carrying = threading.Thread(target=link.carry)
        carrying.start()
        try:
            yield link
        finally:
            link.end()
            carrying.join()


@contextmanager
def _namespace() -> Iterator[str]:
    name = f"everbus-{os.getpid()}"
    _run("netns", "add", name)
    try:
        yield name
    finally:
        _run("netns", "del", name)


@contextmanager
def _tun(name: str) -> Iterator[int]:
    """
    A TUN device; it goes with the descriptor.
    """
    device = os.open("/dev/net/tun", os.O_RDWR)
    try:
        flags = _IFF_TUN | _IFF_NO_PI
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        yield device
    finally:
        os.close(device)


def _run(*arguments: str) -> None:
    subprocess.run(("ip", *arguments), check=True, capture_output=True, text=True)
