"""
A diagnosis as a JUnit report, which CI servers show.

It follows junit-10.xsd of Jenkins's xUnit plugin, which knows no property of a case: a
warning is the output of a case that succeeds.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as xml

from everbus.compose.diagnosis import Diagnosis, measured_text, verdicts_of
from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.stack_folder import write_whole
from everbus.gateway.health.verdicts import IndicatorResult

# What measured_text leaves and XML 1.0 cannot hold.
_NO_CHARACTERS = re.compile("[\ud800-\udfff\ufffe\uffff]")
_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
# Others may read it, as far as the umask lets them: CI often runs as another user.
_MODE = 0o666


def write_junit(path: Path, diagnosis: Diagnosis) -> None:
    """
    Put the report into *path* in one atomic step.

    Raises:
        Failed: the file cannot be written.
    """
    try:
        write_whole(path, junit_report(diagnosis), mode=_MODE)
    except OSError as error:
        raise Failed(
            f"--junit {path}: cannot be written ({error.strerror}); "
            "wanted a file in a folder that exists and that you may write",
            USAGE,
        ) from error


def junit_report(diagnosis: Diagnosis) -> str:
    """
    The report: a suite for each part, a case for each indicator.
    """
    at = datetime.fromtimestamp(diagnosis.at_ms / 1000, UTC)
    root = xml.Element(
        "testsuites", {"name": "everbus doctor", **_counts(diagnosis.findings)}
    )
    for part, findings in diagnosis.by_part().items():
        suite = xml.SubElement(
            root,
            "testsuite",
            {
                "name": part,
                **_counts(findings),
                "skipped": "0",
                "timestamp": at.strftime("%Y-%m-%dT%H:%M:%S"),
            },
        )
        for finding in findings:
            _add_case(suite, part, finding)
    xml.indent(root)

    return f"{_HEAD}{xml.tostring(root, 'unicode')}\n"


def _counts(findings: Sequence[IndicatorResult]) -> dict[str, str]:
    failures = verdicts_of(findings)["fail"]

    return {"tests": str(len(findings)), "failures": str(failures), "errors": "0"}


def _add_case(suite: xml.Element, part: str, finding: IndicatorResult) -> None:
    named = {"name": finding.name, "classname": f"everbus.{part}"}
    case = xml.SubElement(suite, "testcase", named)
    measured = _NO_CHARACTERS.sub("?", measured_text(finding))
    told = f"{finding.means}\n→ {finding.remedy}"
    if finding.verdict == "fail":
        failure = xml.SubElement(case, "failure", {"type": "fail", "message": measured})
        failure.text = told
    elif finding.verdict == "warn":
        xml.SubElement(case, "system-out").text = f"warn: {measured}\n{told}"
