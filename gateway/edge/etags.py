"""
Versions as HTTP entity tags, and conditional requests.

The tag of a session is its version in quotes. It identifies a state, not a timeline:
appends do not change it. Hence `Cache-Control: no-store`.
"""

import re

from everbus.bus.errors import Invalid
from everbus.gateway.edge.problem import RefusedRequest

# Compressing proxies turn tags into weak ones.
_TAG = re.compile(r'(?:W/)?"([1-9][0-9]{0,15})"')
ANY = "*"


def tag_of(version: int) -> str:
    """
    The ETag of a session's state.
    """
    return f'"{version}"'


def expected_version(if_match: str | None, stated: int | None) -> int | None:
    """
    The expected version of a write, from `If-Match` or from its body or query.

    Raises:
        Invalid: both are given and differ.
        RefusedRequest: 400, `If-Match` is no version.
    """
    if if_match is None or if_match.strip() == ANY:
        # A write to a missing session fails in any case.
        return stated
    found = _TAG.fullmatch(if_match.strip())
    if found is None:
        raise RefusedRequest(
            Invalid,
            400,
            'If-Match is no version of a session; send one ETag, like "7", or *',
            field="If-Match",
        )
    version = int(found[1])
    if stated is not None and stated != version:
        raise Invalid(
            f"expected_version is {stated}, If-Match is {version}; send one of them",
            field="expected_version",
        )
    return version


def is_known(if_none_match: str | None, version: int) -> bool:
    """
    Whether `If-None-Match` holds this version.
    """
    if if_none_match is None:
        return False
    tags = [tag.strip() for tag in if_none_match.split(",")]

    return ANY in tags or any(
        found is not None and int(found[1]) == version
        for found in map(_TAG.fullmatch, tags)
    )
