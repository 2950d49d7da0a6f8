"""
Context managers that can be entered once, and say so.

Those of `contextlib` answer a second `with` by an AttributeError of their own.
"""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import TypeVar

from everbus.bus.errors import Invalid

T = TypeVar("T")
_ExcType = type[BaseException] | None


class _SingleEntry:
    """
    Counts the first entry, and refuses the others.
    """

    def __init__(self) -> None:
        self._entered = False

    def take(self) -> None:
        if self._entered:
            raise Invalid(
                "this connection was entered before; call connect() for each `with`",
                field="connect",
            )
        self._entered = True


class AsyncSingleUse(AbstractAsyncContextManager[T]):
    """
    *context*, for one `async with`.
    """

    def __init__(self, context: AbstractAsyncContextManager[T]) -> None:
        self._context = context
        self._entry = _SingleEntry()

    async def __aenter__(self) -> T:
        self._entry.take()

        return await self._context.__aenter__()

    async def __aexit__(
        self, kind: _ExcType, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._context.__aexit__(kind, error, trace)


class SingleUse(AbstractContextManager[T]):
    """
    *context*, for one `with`.
    """

    def __init__(self, context: AbstractContextManager[T]) -> None:
        self._context = context
        self._entry = _SingleEntry()

    def __enter__(self) -> T:
        self._entry.take()

        return self._context.__enter__()

    def __exit__(
        self, kind: _ExcType, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._context.__exit__(kind, error, trace)
