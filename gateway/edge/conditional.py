"""
Versions as HTTP has them: entity tags, and requests that depend on them.

The tag of a session is its version in quotes. It tells one state from another, not one
timeline from another: appends do not move it. Hence `Cache-Control: no-store`.
"""

import re

from bus.errors import Invalid
from gateway.edge.problem import Refused

# Proxies that compress make tags weak on their way.
_TAG = re.compile(r'(?:W/)?"([1-9][0-9]{0,15})"')
ANY = "*"


def tag_of(version: int) -> str:
    """
    The ETag of a session's state.
    """
    return f'"{version}"'


def expected_version(if_match: str | None, stated: int | None) -> int | None:
    """
    The version that a write expects, by its `If-Match` or its own words.

    Raises:
        Invalid: both are given and differ.
        Refused: with 400, `If-Match` holds no version.
    """
    if if_match is None or if_match.strip() == ANY:
        # A write to a session that is not there fails in any case.
        return stated
    found = _TAG.fullmatch(if_match.strip())
    if found is None:
        raise Refused(
            Invalid,
            400,
            'If-Match is no version of a session; send one ETag, like "7", or *',
            field="If-Match",
        )
    version = int(found[1])
    if stated is not None and stated != version:
        raise Invalid(
            f"expected_version is {stated}, and If-Match says {version}; send one of "
            "them",
            field="expected_version",
        )
    return version


def is_known(if_none_match: str | None, version: int) -> bool:
    """
    Whether the client says that it has this version.
    """
    if if_none_match is None:
        return False
    tags = [tag.strip() for tag in if_none_match.split(",")]

    return ANY in tags or any(
        found is not None and int(found[1]) == version
        for found in map(_TAG.fullmatch, tags)
    )
