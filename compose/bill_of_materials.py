"""
The bill of materials (SBOM) of an installed everbus: CycloneDX 1.6 as JSON.

It is made of what is installed, not of what was asked for. `cyclonedx-bom` was tried:
it brings 30 packages, finds no licence of two of ours, and lists the whole environment.

Example: python -m everbus.compose.bill_of_materials server otel > sbom.json
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

from everbus.compose.pinned_wheels import OURS, normalised

SPEC_VERSION = "1.6"
# `name[extras] (version); marker`; of a marker only its extra counts, since what is
# not installed is left out anyway.
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?")
_EXTRA = re.compile(r"""\bextra\s*==\s*["']([^"']+)["']""")
_LICENCE_FILE = re.compile(r"(?i)(^|/)(licen[cs]e|copying|notice)[^/]*$")


class _Required(NamedTuple):
    name: str
    extras: frozenset[str]


class Closure(NamedTuple):
    """
    What is installed because of one distribution.

    Attributes:
        installed: name → distribution, the first one included.
        needs: name → the names that it requires and that are installed.
    """

    installed: dict[str, Distribution]
    needs: dict[str, set[str]]


def closure_of(name: str, extras: Iterable[str]) -> Closure:
    """
    All that *name* with *extras* requires, directly or not, and that is installed.

    Raises:
        PackageNotFoundError: *name* itself is not.
    """
    installed = {normalised(name): distribution(name)}
    needs: dict[str, set[str]] = {}
    done: set[_Required] = set()
    waiting = [_Required(normalised(name), frozenset(map(normalised, extras)))]
    while waiting:
        wanted = waiting.pop()
        if wanted in done:
            continue
        done.add(wanted)
        for one in _requirements(installed[wanted.name], wanted.extras):
            if one.name not in installed:
                try:
                    installed[one.name] = distribution(one.name)
                except PackageNotFoundError:
                    continue  # another platform's, or another version of Python's
            needs.setdefault(wanted.name, set()).add(one.name)
            waiting.append(one)
    return Closure(installed, needs)


def licences_of(dist: Distribution) -> list[dict[str, Any]]:
    """
    The licences that *dist* declares, as CycloneDX has them; never empty.
    """
    said = dist.metadata
    if expression := said.get_all("License-Expression"):
        return [{"expression": expression[0]}]
    classifiers = [
        one.rpartition(" :: ")[2]
        for one in said.get_all("Classifier") or []
        if one.startswith("License :: ")
    ]
    # Some put the whole text there.
    declared = (said.get_all("License") or [""])[0].strip().partition("\n")[0]
    named = classifiers or [declared] if declared else classifiers
    named = named or [_first_line_of_file(dist)]

    return [{"license": {"name": name}} for name in named]


def document_of(closure: Closure, root: str = OURS) -> dict[str, Any]:
    """
    The CycloneDX document; the same for the same installation.
    """
    refs = {name: _purl(name, dist) for name, dist in closure.installed.items()}
    parts = {
        name: {
            "type": "library",
            "bom-ref": refs[name],
            "name": name,
            "version": dist.version,
            "purl": refs[name],
            "licenses": licences_of(dist),
        }
        for name, dist in sorted(closure.installed.items())
    }
    whole = parts.pop(root) | {"type": "application"}

    return {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {"component": whole},
        "components": list(parts.values()),
        "dependencies": [
            {
                "ref": refs[name],
                "dependsOn": sorted(refs[n] for n in closure.needs.get(name, ())),
            }
            for name in sorted(refs)
        ],
    }


def _requirements(dist: Distribution, extras: frozenset[str]) -> Iterator[_Required]:
    for text in dist.requires or ():
        requirement, _, marker = text.partition(";")
        only_with = {normalised(extra) for extra in _EXTRA.findall(marker)}
        found = _REQUIREMENT.match(requirement)
        if found is None or (only_with and only_with.isdisjoint(extras)):
            continue
        also = map(normalised, filter(None, re.split(r"[\s,]+", found[2] or "")))
        yield _Required(normalised(found[1]), frozenset(also))


def _first_line_of_file(dist: Distribution) -> str:
    for path in dist.files or ():
        if _LICENCE_FILE.search(str(path)):
            text = Path(path.locate()).read_text(errors="replace")
            return next(
                (line.strip() for line in text.splitlines() if line.strip()), ""
            )
    return "NOASSERTION"


def _purl(name: str, dist: Distribution) -> str:
    return f"pkg:pypi/{name}@{dist.version}"


def main() -> None:
    """
    Extras as arguments, the document on stdout.
    """
    document = document_of(closure_of(OURS, sys.argv[1:]))
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
