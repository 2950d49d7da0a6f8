"""
The contract of every cold tier: run `check_cold_tier` over your own.

The objects that a check puts are under keys of a session that nobody has, and it
removes them, so that it may run over a tier that is in use.
"""

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable

from everbus.bus.errors import TooLarge
from everbus.gateway.store.cold.manifest import key_of
from everbus.gateway.store.tiers import ColdTier

Make = Callable[[], ColdTier]
Check = Callable[[Make], Awaitable[None]]

# All bytes, line ends and zeros among them.
_SMALL = bytes(range(256)) * 3
# As large as objects of archives become: a chunk that does not compress.
_LARGE_BYTES = 4 * 2**20
_AT_ONCE = 16


async def an_object_is_got_as_it_was_put(make: Make) -> None:
    """
    `get` gives the bytes that `put` was given, be they one or four million.
    """
    async with _Location(make) as place:
        for data in (b"\0", _SMALL, os.urandom(_LARGE_BYTES)):
            key = await place.put(data)
            _same(await place.tier.get(key, len(data)), data, "get after put")


async def what_was_never_put_is_none(make: Make) -> None:
    """
    `get` and `size` of a key without object give None, and `delete` does nothing.
    """
    async with _Location(make) as place:
        key = place.key(b"never put")
        _same(await place.tier.get(key, 1000), None, "get of no object")
        _same(await place.tier.size(key), None, "size of no object")
        await place.tier.delete(key)
        _same(await place.tier.get(key, 1000), None, "get of no object, deleted")


async def the_size_is_the_length(make: Make) -> None:
    """
    `size` gives an object's length in bytes.
    """
    async with _Location(make) as place:
        key = await place.put(_SMALL)
        _same(await place.tier.size(key), len(_SMALL), "size after put")


async def an_object_above_the_limit_is_refused(make: Make) -> None:
    """
    `get` raises TooLarge for an object of one byte more than its limit.
    """
    async with _Location(make) as place:
        key = await place.put(_SMALL)
        _same(await place.tier.get(key, len(_SMALL)), _SMALL, "get at the limit")
        try:
            got = await place.tier.get(key, len(_SMALL) - 1)
        except TooLarge:
            return
        raise AssertionError(
            f"get of {len(_SMALL)} bytes, at most {len(_SMALL) - 1}: wanted TooLarge, "
            f"got {_shown(got)}"
        )


async def putting_again_changes_nothing(make: Make) -> None:
    """
    `put` of the same bytes under the same key may be repeated.
    """
    async with _Location(make) as place:
        key = await place.put(_SMALL)
        await place.put(_SMALL)
        _same(await place.tier.get(key, len(_SMALL)), _SMALL, "get after two puts")


async def a_damaged_object_is_mended_by_putting_it_again(make: Make) -> None:
    """
    `put` replaces what is under the key, should that be something else.
    """
    async with _Location(make) as place:
        key = place.key(_SMALL)
        await place.tier.put(key, _SMALL[:-1] + b"?")
        await place.put(_SMALL)
        _same(await place.tier.get(key, len(_SMALL)), _SMALL, "get after mending")


async def a_deleted_object_is_gone_and_no_other(make: Make) -> None:
    """
    `delete` removes that object, and may be repeated; its neighbours stay.
    """
    async with _Location(make) as place:
        gone, stays = await place.put(b"goes"), await place.put(b"stays")
        await place.tier.delete(gone)
        await place.tier.delete(gone)
        _same(await place.tier.get(gone, 100), None, "get after delete")
        _same(await place.tier.size(gone), None, "size after delete")
        _same(await place.tier.get(stays, 100), b"stays", "get of a neighbour")
        await place.put(b"goes")
        _same(await place.tier.get(gone, 100), b"goes", "get after delete and put")


async def sessions_with_similar_names_keep_apart(make: Make) -> None:
    """
    Keys of sessions of which one's name begins another's are different objects.
    """
    async with _Location(make) as place:
        names = [place.session + end for end in ("", "a", ".a", "_a", "-a")]
        for name in names:
            await place.put(name.encode(), session=name)
        for name in names:
            key = place.key(name.encode(), session=name)
            _same(await place.tier.get(key, 200), name.encode(), f"get for {name}")


async def another_of_the_same_place_sees_it(make: Make) -> None:
    """
    Another instance, made the same way, gets and removes the objects of the first.
    """
    async with _Location(make) as place, _Location(make) as other:
        key = await place.put(_SMALL)
        _same(await other.tier.get(key, len(_SMALL)), _SMALL, "get by another one")
        await other.tier.delete(key)
        _same(await place.tier.get(key, len(_SMALL)), None, "get after its delete")


async def many_at_once_do_not_mix(make: Make) -> None:
    """
    Calls at the same time, some of them equal, all end well.
    """
    async with _Location(make) as place:
        objects = [bytes([n]) * 50_000 for n in range(_AT_ONCE)]
        keys = await asyncio.gather(*map(place.put, [*objects, *objects]))
        got = await asyncio.gather(*(place.tier.get(key, 50_000) for key in keys))
        for data, there in zip([*objects, *objects], got, strict=True):
            _same(there, data, "get after many puts at once")


async def an_object_is_whole_or_not_there(make: Make) -> None:
    """
    A read during a put gets the whole object or None.
    """
    async with _Location(make) as place:
        data = os.urandom(_LARGE_BYTES)
        key = place.key(data)
        putting = asyncio.gather(place.put(data), place.put(data))
        while not putting.done():
            there = await place.tier.get(key, len(data))
            if there is not None:
                _same(there, data, "get during put")
            # A reader that never waits would block the put.
            await asyncio.sleep(0)
        await putting
        _same(await place.tier.get(key, len(data)), data, "get after put")


CHECKS: tuple[Check, ...] = (
    an_object_is_got_as_it_was_put,
    what_was_never_put_is_none,
    the_size_is_the_length,
    an_object_above_the_limit_is_refused,
    putting_again_changes_nothing,
    a_damaged_object_is_mended_by_putting_it_again,
    a_deleted_object_is_gone_and_no_other,
    sessions_with_similar_names_keep_apart,
    another_of_the_same_place_sees_it,
    many_at_once_do_not_mix,
    an_object_is_whole_or_not_there,
)


async def check_cold_tier(make: Make) -> None:
    """
    Run all CHECKS; *make* gives an instance, of the same place each time.

    That an object outlives the machine no check can see: `put` has to wait until it
    is on the disk.

    Raises:
        AssertionError: naming the first check that failed: what, wanted and got.
    """
    for check in CHECKS:
        try:
            await check(make)
        except AssertionError as error:
            raise AssertionError(f"{check.__name__}: {error}") from error


class _Location:
    """
    A tier for the length of an `async with`, and keys of a session of its own.
    """

    def __init__(self, make: Make) -> None:
        self.tier = make()
        self.session = f"contract-{os.urandom(8).hex()}"
        self._put: set[str] = set()

    async def __aenter__(self) -> "_Location":
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            for key in self._put:
                await self.tier.delete(key)
        finally:
            self.tier.close()

    def key(self, data: bytes, session: str = "") -> str:
        return key_of(session or self.session, hashlib.sha256(data).hexdigest())

    async def put(self, data: bytes, session: str = "") -> str:
        key = self.key(data, session)
        self._put.add(key)
        await self.tier.put(key, data)

        return key


def _same(got: object, wanted: object, what: str) -> None:
    if got != wanted:
        raise AssertionError(f"{what}: wanted {_shown(wanted)}, got {_shown(got)}")


def _shown(value: object) -> str:
    size = f" ({len(value)} bytes)" if isinstance(value, bytes) else ""

    return f"{value!r:.60}{size}"
