"""
What a replay's report finds: every way in which a timeline can be wrong.
"""

import json
from datetime import UTC, datetime

import msgspec
import pytest

from bus.messages import TimelineEntry
from compose.exits import USAGE, Failed
from compose.findings import WHATS, Report, compare
from compose.recordings import MAX_ROLES, Recording, read_recordings

AT = datetime(2026, 1, 1, tzinfo=UTC)
MESSAGES = tuple(
    {"role": role, "text": text}
    for role, text in [
        ("user", "hi"),
        ("assistant", "hello"),
        ("tool", "42"),
        ("tool", "43"),
        ("user", "yes"),
        ("assistant", "sure?"),
        ("user", "yes"),  # what is said twice is no doubled entry
    ]
)
RECORDING = Recording("c1", "ada", "c1-x", MESSAGES)


def a_timeline(messages=MESSAGES, first=1):
    return [
        TimelineEntry(seq, AT, message["role"], message)
        for seq, message in enumerate(messages, first)
    ]


def found_in(entries, recording=RECORDING):
    return [(f.conversation, f.seq, f.what) for f in compare(recording, entries)]


def test_a_timeline_as_recorded_has_no_findings():
    assert compare(RECORDING, a_timeline()) == []


@pytest.mark.parametrize("index", range(len(MESSAGES)))
def test_a_missing_entry_is_found(index):
    rest = MESSAGES[:index] + MESSAGES[index + 1 :]

    # Of two that say the same, the later one counts as the missing one.
    place = 7 if index == 4 else index + 1
    assert ("c1", place, "missing") in found_in(a_timeline(rest))


def test_a_missing_entry_that_leaves_a_hole_is_found_twice():
    timeline = a_timeline()
    del timeline[2]

    assert found_in(timeline) == [("c1", 3, "missing"), ("c1", 4, "misnumbered")]


@pytest.mark.parametrize("index", range(len(MESSAGES)))
def test_a_doubled_entry_is_found(index):
    doubled = (*MESSAGES[: index + 1], *MESSAGES[index:])

    found = [what for _, _, what in found_in(a_timeline(doubled))]

    assert found.count("doubled") == 1
    assert "missing" not in found


def test_a_doubled_entry_is_named_by_its_seq():
    doubled = (*MESSAGES, MESSAGES[1])

    assert found_in(a_timeline(doubled)) == [("c1", 8, "doubled")]


def test_two_entries_that_are_swapped_are_found():
    swapped = list(MESSAGES)
    swapped[2:4] = swapped[3], swapped[2]

    [finding] = compare(RECORDING, a_timeline(swapped))

    told = "c1 seq 4: out of order: message 3 comes after message 4"
    assert str(finding) == told


def test_an_entry_that_differs_is_found_and_not_told_as_missing():
    changed = [*MESSAGES[:1], {"role": "assistant", "text": "HELLO"}, *MESSAGES[2:]]

    [finding] = compare(RECORDING, a_timeline(changed))

    assert (finding.seq, finding.what) == (2, "differing")
    assert '"HELLO"' in finding.detail
    assert '"hello"' in finding.detail


def test_an_entry_that_nobody_recorded_is_found():
    more = (*MESSAGES, {"role": "user", "text": "forged"})

    assert found_in(a_timeline(more)) == [("c1", 8, "differing")]


def test_a_number_that_changed_its_type_differs():
    recording = Recording("c1", "ada", "c1-x", ({"role": "user", "n": 1},))

    assert found_in(a_timeline([{"role": "user", "n": 1.0}]), recording) == [
        ("c1", 1, "differing")
    ]


def test_a_wrong_author_is_found():
    timeline = a_timeline()
    timeline[3] = msgspec.structs.replace(timeline[3], author="user")

    assert found_in(timeline) == [("c1", 4, "wrong author")]


def test_numbers_that_do_not_begin_at_one_are_found_once():
    assert found_in(a_timeline(first=2)) == [("c1", 2, "misnumbered")]


def test_an_empty_timeline_misses_everything():
    wanted = [("c1", seq, "missing") for seq in range(1, len(MESSAGES) + 1)]

    assert found_in([]) == wanted


def test_a_report_counts_each_kind():
    timeline = a_timeline((*MESSAGES[1:], MESSAGES[1], MESSAGES[1]))
    report = Report(1, 7, 0.5, tuple(compare(RECORDING, timeline)))

    assert not report.clean
    numbers = {"conversations": 1, "messages": 7, "seconds": 0.5, "messages_per_s": 14}
    counts = {what.replace(" ", "_"): 0 for what in WHATS}
    counts |= {"missing": 1, "doubled": 2}
    assert report.summary() == numbers | counts


LINE = {"conversation_id": "c1", "user_id": "ada", "messages": [{"role": "user"}]}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{", "truncated"),
        (b"\xff", "malformed"),
        (b"[1]", "got `array`"),
        (json.dumps(LINE | {"conversation_id": "a b"}).encode(), "'a b-x'"),
        (json.dumps(LINE | {"user_id": ""}).encode(), "user_id is ''"),
        (json.dumps(LINE | {"messages": []}).encode(), "messages is empty"),
        (json.dumps(LINE | {"messages": ["hi"]}).encode(), "messages[0]"),
        (json.dumps(LINE | {"messages": [{"a": 1}]}).encode(), "messages[0].role"),
        (
            json.dumps(LINE | {"messages": [{"role": "user", "$a": 1}]}).encode(),
            "messages[0] has the key '$a'",
        ),
        (
            json.dumps(LINE | {"messages": [{"role": "u", "t": "x" * 2**18}]}).encode(),
            "at most",
        ),
        (b"[" * 100_000, "line 2"),
    ],
)
def test_a_bad_line_is_named_with_its_remedy(tmp_path, line, told):
    path = tmp_path / "conversations.jsonl"
    path.write_bytes(json.dumps(LINE | {"conversation_id": "c0"}).encode() + b"\n")
    path.write_bytes(path.read_bytes() + line + b"\n")

    with pytest.raises(Failed) as failed:
        read_recordings(path, "x")

    assert failed.value.exit_code == USAGE
    assert f"{path}, line 2: " in str(failed.value)
    assert told in str(failed.value)
    assert "Mend or delete the line" in str(failed.value)


def test_a_conversation_that_comes_twice_is_refused(tmp_path):
    path = tmp_path / "conversations.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n\n{json.dumps(LINE)}\n")

    with pytest.raises(Failed, match="line 3: conversation_id 'c1' was there before"):
        read_recordings(path, "x")


def test_a_file_without_conversations_is_refused(tmp_path):
    path = tmp_path / "conversations.jsonl"
    path.write_text("\n")

    with pytest.raises(Failed, match="no conversation"):
        read_recordings(path, "x")


def test_too_many_roles_are_refused(tmp_path):
    path = tmp_path / "conversations.jsonl"
    messages = [{"role": f"r{n}"} for n in range(MAX_ROLES + 1)]
    path.write_text(json.dumps(LINE | {"messages": messages}))

    with pytest.raises(Failed, match=f"{MAX_ROLES + 1} roles"):
        read_recordings(path, "x")


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_an_unreadable_file_is_a_mistake_of_the_user(tmp_path, name):
    with pytest.raises(Failed, match="readable file") as failed:
        read_recordings(tmp_path / name, "x")

    assert failed.value.exit_code == USAGE


def test_the_limit_stops_reading(tmp_path):
    path = tmp_path / "conversations.jsonl"
    path.write_text(f"{json.dumps(LINE)}\nrubbish\n")

    [recording] = read_recordings(path, "x", limit=1)

    assert recording.session_id == "c1-x"


def test_a_recording_is_cut_where_the_role_changes():
    runs = [(run.role, len(run.messages)) for run in RECORDING.runs()]

    assert runs == [
        ("user", 1),
        ("assistant", 1),
        ("tool", 2),
        ("user", 1),
        ("assistant", 1),
        ("user", 1),
    ]
    assert RECORDING.roles == ["user", "assistant", "tool"]
