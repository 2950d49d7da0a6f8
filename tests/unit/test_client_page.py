"""
What docs/write-a-client.md says of names, fields and limits is what the code has.
"""

import re
from pathlib import Path

import msgspec
import pytest

from everbus.bus import keys
from everbus.bus.credential import UNLOGGED
from everbus.bus.heartbeat import BEAT, JOIN, LEAVE, MAX_HEARTBEATS
from everbus.bus.messages import (
    MAX_COMMAND_BYTES,
    MAX_DEPTH,
    MAX_INTEGER,
    SCHEMA,
    Envelope,
    Reply,
)
from everbus.bus.outgoing_command import GRANT_BYTES
from everbus.bus.settled_numbers import REFUSED, SETTLED_KIND
from everbus.bus.watches import ASK_EVERY_S
from everbus.compose.settings import Settings
from everbus.gateway.identity.tokens import MAX_TOKEN_BYTES
from everbus.gateway.lane.delivery import MAX_ENTRY_BYTES, MAX_ENTRY_COMMANDS
from everbus.gateway.lane.subscribers import WATCHED_S
from everbus.gateway.store.hot_copy import CARRIED_BYTES

PAGE = (Path(__file__).parents[2] / "docs" / "write-a-client.md").read_text()
LIMITS = {
    "an envelope": f"{MAX_COMMAND_BYTES:,} bytes",
    "an entry, as managers take it": (
        f"{MAX_ENTRY_COMMANDS} commands, {MAX_ENTRY_BYTES:,} bytes"
    ),
    "a token": f"{MAX_TOKEN_BYTES:,} bytes",
    "a grant": f"{GRANT_BYTES:,} bytes",
    "a reply inside a wake-up": f"{CARRIED_BYTES:,} bytes",
    "depth of a value": f"{MAX_DEPTH} levels",
    "an integer": f"within ±{MAX_INTEGER:,}",
}
# Explained elsewhere on the page, or the gateway's own.
APART = {"on_behalf", "wake", "fingerprint", "trace"}
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
SAID = [
    f"`XADD {keys.ingress('<p>', '<mad>')} * c <envelope>`",
    f"`XADD {keys.ingress(keys.PRESENCE, '<mad>')} MAXLEN ~ {MAX_HEARTBEATS} * c",
    f"First `{JOIN}`, epoch 1; then `{BEAT}`",
    f"at the end `{LEAVE}`",
    f"`HMGET {keys.CONFIG} partitions schema lease_ms`",
    f"`HSETNX {keys.MADS} <mad> {{}}`",
    f"`PUBLISH {keys.NEWS} mads`",
    f"not `{keys.EDGE}` or `{keys.GATEWAY}`",
    f"`SUBSCRIBE {keys.wake('<mad>', '<instance>')}`",
    f"`PUBLISH {keys.token('<mad>')}` with {len(UNLOGGED)} bytes",
    f"| `v` | {SCHEMA} |",
    "| `id` | `<instance>.<p>.<n>`",
    f"stream `{keys.reply('<p>', '<mad>', '<id>')}`",  # type: ignore[arg-type]
    f"`{keys.reply('<p>', '<mad>', '<id>', '<instance>')}`",  # type: ignore[arg-type]
    f"by itself after {DEFAULTS['reply_ttl_s']} s",
    f"`{SETTLED_KIND}`",
    f"`{REFUSED}`",
    f"else every {ASK_EVERY_S:.0f} s, since managers push for {WATCHED_S:.0f} s",
    f"for a death after {DEFAULTS['lost_after_disconnect_s']} s",
]


def rows(heading: str) -> dict[str, str]:
    """
    The first two cells of each row of the tables under a heading.
    """
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| (.+?) \| ?(.*?) ?\|$", section, re.MULTILINE)

    return {name: told for name, told in found if name != "---"}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_is_the_codes(limit):
    assert rows("Limits")[limit] == LIMITS[limit]


@pytest.mark.parametrize(
    ("heading", "kind"),
    [("3. Send a command", Envelope), ("4. Receive the reply", Reply)],
)
def test_every_field_of_a_message_is_told(heading, kind):
    fields = {field.name for field in msgspec.structs.fields(kind)}
    told = {name.strip("`") for cell in rows(heading) for name in cell.split(", ")}

    assert fields - APART <= told
    assert told - {"field"} <= fields


@pytest.mark.parametrize("words", SAID)
def test_what_it_says_is_what_the_code_does(words):
    assert words in " ".join(PAGE.split())
