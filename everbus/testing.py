"""
What tests of MADs are written with; needs the extra `testing`.

`TestBus` is a whole bus in memory, `RealBus` the same with real servers. The pytest
plugin that comes with everbus has them as fixtures: `everbus_bus`, `everbus_mad`,
`everbus_stack`.
"""

try:
    from everbus.compose.testing.bus.realbus import RealBus
    from everbus.compose.testing.bus.testbus import TestBus
    from everbus.compose.testing.bus.under_test import BusUnderTest
except ImportError as error:
    library = (error.name or "").partition(".")[0]
    if library in {"", "everbus"}:
        raise
    if library == "fakeredis" and not isinstance(error, ModuleNotFoundError):
        raise ImportError(
            f"this fakeredis is built otherwise than 2.41, which is known to work: "
            f"{error}. Remedy: pip install 'fakeredis[lua]==2.41.*'"
        ) from error
    raise ImportError(
        f"{error.name} is not installed; everbus.testing needs the extra 'testing': "
        "pip install 'everbus[testing]'"
    ) from error

__all__ = ["BusUnderTest", "RealBus", "TestBus"]
