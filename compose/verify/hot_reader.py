"""
The hot tier as `everbus verify` sees it: sessions, and the producers' numbers.
"""

from collections import defaultdict

import msgspec
from redis.exceptions import ResponseError

from everbus.bus.keys import partition_of
from everbus.bus.messages import ordinal_of
from everbus.bus.server_errors import refusal
from everbus.bus.wire import Wire
from everbus.compose.verify.copies import HotCopy
from everbus.compose.verify.violations import Violation, Violations
from everbus.gateway.lane.sequence import ProducerWindow
from everbus.gateway.store import hot_copy, key_names
from everbus.gateway.store.sealed_copies import SealedCopies


class HotReader:
    """
    Reads on one connection; nothing here writes.
    """

    def __init__(
        self, wire: Wire, partitions: int, sealed: SealedCopies | None = None
    ) -> None:
        self._sealed = sealed
        self._wire = wire
        self._partitions = partitions
        # An admission notes numbers that MongoDB tells of also under the gateway's
        # names: an instance may have several records, each of what it has seen.
        self._windows: defaultdict[tuple[int, str], list[ProducerWindow]]
        self._windows = defaultdict(list)

    async def read(self, session_id: str) -> HotCopy:
        """
        One session, decoded as far as it can be.
        """
        p = partition_of(session_id, self._partitions)
        key = key_names.session(p, session_id)
        replies = await self._wire.exchange(
            [
                *hot_copy.read_commands(p, session_id),
                hot_copy.durable_command(p, session_id),
                ("HGET", key, "refused"),
            ]
        )
        for reply in replies:
            if isinstance(reply, ResponseError):
                return HotCopy(damage=str(refusal(reply)))
        *copied, durable, refused = replies
        if self._sealed is not None:
            copied = await self._sealed.open_copies([session_id], copied)
            if isinstance(copied[0], ResponseError):
                return HotCopy(damage=str(copied[0]))
        tombstone = (copied[2] or b"").startswith(b"deleted:")
        try:
            found = hot_copy.found_in(session_id, copied)
            held = hot_copy.durable_in(durable)
        except (ValueError, TypeError, msgspec.MsgspecError) as error:
            return HotCopy(damage=str(error)[:200])
        if found.undecodable:
            return HotCopy(damage="its fields do not decode to a session")
        up_to = (held.version, held.seq)
        return HotCopy(found, up_to, refused == b"1", "", tombstone)

    async def load_windows(self, violations: Violations) -> None:
        """
        Learn the producers' numbers of every partition; a record that cannot be
        decoded is a violation.
        """
        for p in range(self._partitions):
            found = await self._wire.call("HGETALL", key_names.publishers(p))
            for publisher, packed in zip(found[::2], found[1::2], strict=True):
                name = publisher.decode(errors="replace")
                try:
                    window = ProducerWindow.parse(packed)
                except ValueError as error:
                    detail = f"the numbers of producer {name}: {error}"
                    violations.note(Violation("damaged", f"partition {p}", detail))
                    continue
                self._windows[p, name.rpartition(":")[2]].append(window)

    def is_settled(self, command_id: str) -> bool | None:
        """
        Whether a record of the producer counts the command as settled; None: it has
        none.
        """
        ordinal = ordinal_of(command_id)
        if ordinal is None:
            return None
        windows = self._windows.get((ordinal.partition, ordinal.instance))

        return None if not windows else any(one.settled(ordinal.n) for one in windows)
