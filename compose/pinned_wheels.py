"""
Requirements with hashes, from pip's report of what it would install.

A script of the image's build: it runs before anything is installed, so it uses the
standard library alone. It names no index: who builds says where wheels come from.

Example: pip install --dry-run --ignore-installed --quiet --report - 'everbus[server]' |
python compose/pinned_wheels.py > constraints.txt
"""

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

OURS = "everbus"
_SEPARATORS = re.compile(r"[-_.]+")


def normalised(name: str) -> str:
    """
    A distribution's name as all tools spell it (PEP 503).
    """
    return _SEPARATORS.sub("-", name).lower()


def pinned(report: Mapping[str, Any]) -> list[str]:
    """
    A line `name==version --hash=sha256:…` for each wheel, but for everbus itself.

    Raises:
        ValueError: pip knows no hash of a wheel; it names the wheel.
    """
    lines = []
    for one in report["install"]:
        name = normalised(one["metadata"]["name"])
        if name == OURS:
            continue
        hashes = one["download_info"].get("archive_info", {}).get("hashes", {})
        if "sha256" not in hashes:
            raise ValueError(
                f"pip tells no SHA-256 of {name}; install it from an index"
            )
        version = one["metadata"]["version"]
        lines.append(f"{name}=={version} --hash=sha256:{hashes['sha256']}")
    return sorted(lines)


def main() -> None:
    """
    Report on stdin, lines on stdout.
    """
    sys.stdout.write("".join(f"{line}\n" for line in pinned(json.load(sys.stdin))))


if __name__ == "__main__":
    main()
