"""
Known vulnerabilities of what the image installs, by pip-audit on constraints.txt.

Exit code 1 for a vulnerability. Where the data cannot be had it says so, and passes:
pip-audit alone would skip each package then, and report that none is vulnerable.
"""

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

LONGEST_S = 300


def verdict_of(report: dict[str, Any] | None) -> tuple[str, int]:
    """
    What to say of pip-audit's report, and the exit code; None: there is no report.
    """
    listed = [] if report is None else report["dependencies"]
    looked_at = [one for one in listed if "skip_reason" not in one]
    if not looked_at:
        return "pip-audit could not run: its data cannot be had from here", 0
    found = [
        f"{one['name']} {one['version']}: {vulnerability['id']}, fixed in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for one in looked_at
        for vulnerability in one["vulns"]
    ]
    skipped = len(listed) - len(looked_at)
    said = f"pip-audit: {len(found)} vulnerabilities in {len(looked_at)} packages"
    lines = [f"{said}, {skipped} unknown to it", *found]

    return "\n".join(lines), 1 if found else 0


def report_on(constraints: str) -> dict[str, Any] | None:
    """
    pip-audit's report; it is installed apart, and None if it cannot be.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python, report = Path(folder) / "bin" / "python", Path(folder) / "report.json"
        install = ("-m", "pip", "install", "--quiet", "--only-binary", ":all:")
        audit = ("-m", "pip_audit", "--disable-pip", "--require-hashes", "--timeout=10")
        output = ("--progress-spinner=off", "--format=json", f"--output={report}")
        try:
            for command in (
                (*install, "pip-audit"),
                (*audit, *output, "--requirement", constraints),
            ):
                subprocess.run(  # noqa: S603 - our own words
                    [python, *command],
                    timeout=LONGEST_S,
                    capture_output=True,
                    check=False,
                )
        except subprocess.TimeoutExpired:
            return None
        if not report.is_file():
            return None
        found: dict[str, Any] = json.loads(report.read_text())
        return found


if __name__ == "__main__":
    said, code = verdict_of(report_on(sys.argv[1]))
    sys.stdout.write(f"{said}\n")
    sys.exit(code)
