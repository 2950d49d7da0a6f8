"""
The bill of materials and the pinned wheels of an image.
"""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from everbus.compose.bill_of_materials import closure_of, document_of
from everbus.compose.pinned_wheels import normalised, pinned

EXTRAS = ("server", "otel")
HOUSE = Path(__file__).parents[2]
SCRIPT = HOUSE / "compose" / "pinned_wheels.py"
HASH = "a" * 64


def installed_closure(name, extras):
    """
    Name → version, by the markers as `packaging` understands them.
    """
    found, waiting = {}, [(name, frozenset(extras))]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            dist = distribution(name)
        except PackageNotFoundError:
            continue
        found[normalised(name)] = dist.version
        for text in dist.requires or ():
            one = Requirement(text)
            if one.marker is None or any(
                one.marker.evaluate({"extra": extra}) for extra in (*extras, "")
            ):
                waiting.append((normalised(one.name), frozenset(one.extras)))
    return found


@pytest.fixture(scope="module")
def document():
    return document_of(closure_of("everbus", EXTRAS))


def test_the_bill_lists_each_installed_distribution_with_its_version(document):
    listed = {one["name"]: one["version"] for one in document["components"]}
    wanted = installed_closure("everbus", EXTRAS)
    ours = document["metadata"]["component"]

    assert (ours["name"], ours["version"]) == ("everbus", wanted.pop("everbus"))
    # Of another platform, and installed for something else: no harm.
    assert {n: v for n, v in listed.items() if n in wanted} == wanted
    assert {"redis", "cryptography", "hiredis", "opentelemetry-sdk"} <= set(listed)
    assert not {"pytest", "mypy", "ruff"} & set(listed)


def test_each_has_a_licence(document):
    for one in (document["metadata"]["component"], *document["components"]):
        said = [
            licence.get("expression") or licence["license"]["name"]
            for licence in one["licenses"]
        ]
        assert said, one["name"]
        assert all(said), one["name"]
        assert "NOASSERTION" not in said, one["name"]


def test_it_is_cyclonedx_and_names_no_host(document):
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    refs = [one["bom-ref"] for one in document["components"]]
    assert len(set(refs)) == len(refs)
    known = {*refs, document["metadata"]["component"]["bom-ref"]}
    assert {one["ref"] for one in document["dependencies"]} == known
    needed = {ref for one in document["dependencies"] for ref in one["dependsOn"]}
    assert needed == set(refs)
    assert all(ref.startswith("pkg:pypi/") for ref in known)
    assert "://" not in json.dumps(document)


def test_extras_bring_theirs():
    base = closure_of("everbus", ()).installed
    whole = closure_of("everbus", EXTRAS).installed

    assert "hiredis" in base
    assert "fastapi" not in base
    assert "fastapi" in whole


def a_wheel(name, version="1.0", hashes=None):
    url = f"https://index.example/{name}.whl"
    info = {"hashes": {"sha256": HASH} if hashes is None else hashes}
    return {
        "metadata": {"name": name, "version": version},
        "download_info": {"url": url, "archive_info": info},
    }


def test_each_wheel_is_pinned_by_its_hash_and_no_host_is_named():
    ours = {"metadata": {"name": "everbus", "version": "0.1.0"}, "download_info": {}}
    report = {"install": [a_wheel("Zope.Thing"), ours, a_wheel("anyio", "4.1")]}

    assert pinned(report) == [
        f"anyio==4.1 --hash=sha256:{HASH}",
        f"zope-thing==1.0 --hash=sha256:{HASH}",
    ]


def test_a_wheel_without_a_hash_ends_the_build():
    with pytest.raises(ValueError, match="SHA-256 of anyio"):
        pinned({"install": [a_wheel("anyio", hashes={})]})


def test_the_script_runs_before_anything_is_installed():
    """
    Isolated: the standard library alone.
    """
    ran = subprocess.run(
        [sys.executable, "-ISE", str(SCRIPT)],
        input=json.dumps({"install": [a_wheel("anyio")]}),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert ran.stdout == f"anyio==1.0 --hash=sha256:{HASH}\n", ran.stderr


@pytest.fixture(scope="module")
def audit():
    spec = spec_from_file_location("audit", HOUSE / ".ci" / "audit.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SKIPPED = {"name": "redis", "skip_reason": "Dependency not found on PyPI"}
SOUND = {"name": "anyio", "version": "4.1", "vulns": []}
HARMED = {
    "name": "pyjwt",
    "version": "2.3.0",
    "vulns": [{"id": "PYSEC-2022-202", "fix_versions": ["2.4.0"]}],
}


@pytest.mark.parametrize(
    ("report", "words", "code"),
    [
        (None, "could not run", 0),
        ({"dependencies": []}, "could not run", 0),
        ({"dependencies": [SKIPPED]}, "could not run", 0),
        ({"dependencies": [SOUND, SKIPPED]}, "0 vulnerabilities in 1 packages, 1", 0),
        ({"dependencies": [SOUND, HARMED]}, "pyjwt 2.3.0: PYSEC-2022-202, fixed", 1),
    ],
)
def test_an_audit_without_data_says_that_it_was_none(audit, report, words, code):
    """
    pip-audit calls a package that it knows nothing of not vulnerable.
    """
    said, exit_code = audit.verdict_of(report)

    assert words in said
    assert exit_code == code
