"""
`everbus doctor --junit`: a report that CI servers read, whole or not at all.
"""

import sys
from xml.etree import ElementTree as xml

import pytest

from everbus.compose import cli, doctor_command
from everbus.compose.diagnosis import PART_OF, Diagnosis
from everbus.compose.doctor_junit import junit_report, write_junit
from everbus.compose.exit_codes import FINDING, USAGE, Failed
from tests.unit.test_doctor import AT_MS, a_finding

# Of junit-10.xsd, as far as reports of ours use it: the attributes of an element, those
# it has to have, and what it may hold.
ELEMENTS = {
    "testsuites": ("name tests failures errors", "", {"testsuite"}),
    "testsuite": (
        "name tests failures errors skipped timestamp",
        "name tests failures errors",
        {"testcase"},
    ),
    "testcase": ("name classname", "name", {"failure", "system-out"}),
    "failure": ("type message", "", set()),
    "system-out": ("", "", set()),
}


def check_schema(element):
    known, needed, inside = ELEMENTS[element.tag]
    assert set(needed.split()) <= set(element.attrib) <= set(known.split())
    for child in element:
        assert child.tag in inside
        check_schema(child)


def parsed(report):
    root = xml.fromstring(report)  # noqa: S314  we made it
    check_schema(root)
    return root


def read(findings):
    return parsed(junit_report(Diagnosis(AT_MS, findings)).encode())


def cases(root):
    return {case.get("name"): case for case in root.iter("testcase")}


def test_each_part_is_a_suite_and_each_indicator_a_case():
    verdicts = ("pass", "warn", "fail")
    findings = [
        a_finding(name, verdicts[n % 3]) for n, name in enumerate(sorted(PART_OF))
    ]

    root = read(findings)

    assert {
        case.get("name"): suite.get("name") for suite in root for case in suite
    } == PART_OF
    assert len(root) == len(set(PART_OF.values()))
    for counted in (root, *root):
        assert int(counted.get("tests")) == len(list(counted.iter("testcase")))
        assert int(counted.get("failures")) == len(list(counted.iter("failure")))
    assert {suite.get("timestamp") for suite in root} == {"2027-01-15T08:00:00"}


def test_a_failure_tells_value_and_remedy_and_a_warning_is_output():
    found = cases(
        read(
            [
                a_finding("lag", "fail", shown="12 s", remedy="start <more>"),
                a_finding("fsync", "warn", shown="everysec", threshold="always"),
                a_finding("outbox"),
            ]
        )
    )

    [failure] = found["lag"]
    assert failure.get("message") == "12 s (warn 2, fail 10)"
    assert failure.text == "age of the oldest command\n→ start <more>"
    [output] = found["fsync"]
    assert output.tag == "system-out"
    assert output.text.splitlines()[0] == "warn: everysec (always)"
    assert "→ start a manager" in output.text
    assert list(found["outbox"]) == []


@pytest.mark.parametrize("verdict", ["fail", "warn"])
@pytest.mark.parametrize(
    "shown", ["\x00\x1b[31m", "\ufffe\uffff", "\ud800", "]]><x a='\"'>&"]
)
def test_whatever_the_bus_says_the_report_can_be_read(shown, verdict):
    [case] = cases(read([a_finding("lag", verdict, shown=f"a {shown}")])).values()

    assert "a " in (case[0].get("message") or case[0].text)


def test_the_command_writes_the_report_and_ends_as_without(everbus, tmp_path):
    file = tmp_path / "doctor.xml"
    file.write_text("old, and much longer than nothing")

    code, told = everbus([a_finding(verdict="fail")], file)

    assert code == FINDING
    assert "1 of 1 needs attention: lag" in told
    assert cases(parsed(file.read_bytes()))["lag"][0].tag == "failure"
    assert everbus([a_finding(verdict="warn")], file)[0] == 0
    assert cases(parsed(file.read_bytes()))["lag"][0].tag == "system-out"
    assert [one.name for one in tmp_path.iterdir()] == ["doctor.xml"]


@pytest.fixture
def everbus(monkeypatch, capsys):
    """
    Runs `everbus doctor --junit` on these findings; exit code and stdout.
    """

    def run(findings, file):
        async def diagnosed(_):
            return Diagnosis(AT_MS, findings)

        monkeypatch.setattr(doctor_command, "diagnose", diagnosed)
        monkeypatch.setattr(sys, "argv", ["everbus", "doctor", "--junit", str(file)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().out

    return run


def test_a_report_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "doctor.xml"
    file.write_text("the old one")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("everbus.compose.stack_folder.os.fsync", full)

    with pytest.raises(Failed, match="No space left on device"):
        write_junit(file, Diagnosis(AT_MS, [a_finding()]))

    assert file.read_text() == "the old one"


def test_a_file_that_cannot_be_written_is_said_with_the_remedy(tmp_path):
    file = tmp_path / "none" / "doctor.xml"

    with pytest.raises(Failed, match="wanted a file in a folder that exists") as failed:
        write_junit(file, Diagnosis(AT_MS, []))

    assert failed.value.exit_code == USAGE
    assert str(file) in str(failed.value)
