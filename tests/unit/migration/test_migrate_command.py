"""
`everbus migrate` for people: tables, codes, and what is refused before anything runs.
"""

import asyncio
import json
import sys
import tomllib
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from everbus.compose import cli, exit_codes
from everbus.compose.migration import comparison

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture
def migrate(bus, monkeypatch):
    """
    Runs the command in a thread; returns code, stdout and stderr.
    """
    monkeypatch.setenv("EVERBUS_REDIS_URL", bus.url)
    monkeypatch.setenv("EVERBUS_JWT_SECRET", bus.secret)
    monkeypatch.setenv("EVERBUS_DEVELOPMENT", "true")
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr(comparison, "LOOK_AGAIN_S", 0)
    monkeypatch.setattr(
        "everbus.compose.migration.tenant_mads.configure_logs", lambda *_: None
    )
    # The bus in this process logs as well, and not into what a command prints.
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(sys.stderr))

    def run(arguments):
        ran = CliRunner().invoke(cli.app, ["migrate", *map(str, arguments)])
        error = ran.exception
        if error is None or isinstance(error, SystemExit):
            return ran.exit_code, ran.stdout, ran.stderr
        code = exit_codes.exit_code_of(error)
        if code is None:
            raise error
        return code, ran.stdout, exit_codes.describe(error)

    async def command(*arguments):
        return await asyncio.to_thread(run, arguments)

    yield command
    structlog.reset_defaults()


async def test_the_steps_for_people(migrate, mapping_file, old, mad):
    old.add("people-a", messages=2)
    old.add("people-b", user="*")

    dry = await migrate("backfill", mapping_file, "--dry-run")
    filled = await migrate("backfill", mapping_file)
    same = await migrate("compare", mapping_file)
    await mad.append_and_wait("people-a", "extra")
    other = await migrate("compare", mapping_file)
    report = await migrate("report", mapping_file)

    assert (dry[0], filled[0], same[0], other[0], report[0]) == (1, 1, 0, 1, 1)
    assert "people-a/0" in dry[1]
    assert "1 sessions, 2 entries, 1 rows refused; nothing was written" in dry[1]
    assert "migrate.toml.refused.jsonl says which and why" in filled[2]
    assert "1 conversations, 2 entries compared; 1 rows cannot be copied" in same[1]
    assert "extra people-a seq 3 (old people-a)" in other[1]
    assert "1 entries that only everbus has" in other[1]
    assert "the old store still leads for some users" in report[1]


async def test_a_cutover_is_shown_and_changed_one_at_a_time(migrate, tmp_path):
    file = tmp_path / "cutover.json"

    nothing = await migrate("cutover", file)
    first = await migrate("cutover", file, "--user", "ada", "--percent", "5")
    second = await migrate("cutover", file, "--percent", "10")
    wrong = await migrate("cutover", tmp_path / "other", "--percent", 1, "--to", "me")

    assert "now: everbus leads for 0 % of users" in nothing[1]
    assert 'everbus leads for 5 % of users; by name (1): {"ada":"everbus"}' in first[1]
    assert (second[0], "the last change holds in" in second[2]) == (5, True)
    assert (wrong[0], "wanted old or everbus" in wrong[2]) == (2, True)
    assert json.loads(file.read_text())["next"]["percent"] == 5


async def test_each_tenant_has_its_own_connection(migrate, tmp_path, bus):
    lines = [
        {"id": f"tenant-{t}", "user": "ada", "team": t, "messages": [{"n": 1}]}
        for t in ("red", "blue")
    ]
    (tmp_path / "old.jsonl").write_text("\n".join(map(json.dumps, lines)))
    mapping = tmp_path / "tenants.toml"
    mapping.write_text(
        '[source]\nkind = "jsonl"\npath = "old.jsonl"\n'
        '[session]\nowner = "user"\ntenant = "team"\n[entry]\nwhole = true\n'
    )

    code, told, _ = await migrate("backfill", mapping, "-o", "json")

    assert (code, json.loads(told.splitlines()[-1])["created"]) == (0, 2)
    async with bus.connect(mad="m", role="admin", tenant="red", lease=False) as red:
        assert (await red.get_session("tenant-red")).tenant == "red"


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"EVERBUS_JWT_SECRET": ""}, "neither EVERBUS_TOKEN nor EVERBUS_JWT_SECRET"),
        ({"EVERBUS_JWT_SECRET": "short"}, "EVERBUS_JWT_SECRET"),
    ],
)
async def test_without_a_key_of_tokens_nothing_begins(
    migrate, mapping_file, old, monkeypatch, environment, told
):
    old.add("no-token")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    code, _, err = await migrate("backfill", mapping_file)

    assert (code, told in err) == (2, True), err


async def test_wrong_options_and_mappings_are_usage_errors(migrate, tmp_path):
    assert (await migrate("backfill", tmp_path / "none.toml"))[0] == 2
    code, _, err = await migrate("backfill", tmp_path / "x.toml", "--rate", "-1")
    assert (code, "wanted entries per second" in err) == (2, True)


def test_the_page_shows_the_mapping_of_the_example():
    page = (DOCS / "migrate.md").read_text()
    shown = page.split("```toml\n")[1].split("```")[0]
    example = (DOCS / "examples" / "moved_store" / "migrate.toml").read_text()

    assert tomllib.loads(shown) == tomllib.loads(example)
