"""
Durations as people write them.
"""

import re

from everbus.compose.exit_codes import USAGE, Failed

_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds_of(duration: str, option: str = "--ttl") -> int:
    """
    The seconds in a duration such as 90s, 15m, 24h or 7d, given as *option*.

    Raises:
        Failed: it is none.
    """
    parts = _DURATION.fullmatch(duration)
    if parts is None:
        raise Failed(f"{option} {duration}: wanted a number and s, m, h or d", USAGE)

    return int(parts[1]) * _SECONDS[parts[2]]
