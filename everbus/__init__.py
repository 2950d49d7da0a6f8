"""
The SessionManager for multi-agent systems: what a MAD's author imports.

The packages of the repository live below this one: `everbus.bus`,
`everbus.handlers`, `everbus.gateway`, `everbus.archiver`, `everbus.compose`.
Nothing is installed under any other name.

A name is imported on first use: `everbus --help`, and the pytest plugin that every
run of pytest loads, need none of the SDK.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everbus.bus import *  # noqa: F403 - the SDK's names, listed once in bus
    from everbus.bus import __all__ as __all__

    __version__: str
else:

    def __getattr__(name: str) -> object:
        """
        A public name of the SDK, or `__version__` of the installed metadata.
        """
        from importlib import import_module, metadata

        if name == "__version__":
            globals()[name] = metadata.version(__name__)
            return globals()[name]
        missing = AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name.startswith("__") and name != "__all__":
            raise missing
        sdk = import_module("everbus.bus")
        if name not in (*sdk.__all__, "__all__"):
            raise missing
        return getattr(sdk, name)

    def __dir__() -> list[str]:
        """
        The SDK's names as well, for completion.
        """
        from importlib import import_module

        return sorted({*globals(), *import_module("everbus.bus").__all__})
