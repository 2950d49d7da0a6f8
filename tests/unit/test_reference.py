"""
The pages of docs/reference are those that the code makes now; and they are right.
"""

import json
import re
from pathlib import Path

import msgspec
import pytest
import yaml

from everbus.bus import keys, messages
from everbus.bus.errors import Malformed
from everbus.bus.events import EventPage
from everbus.bus.messages import Envelope, pack, pack_envelope, unpack, unpack_envelope
from everbus.compose.reference.asyncapi import description
from everbus.compose.reference.event_pages import SESSION_EVENTS
from everbus.compose.reference.pages import PAGES
from everbus.compose.setting_meanings import MEANINGS
from everbus.compose.settings import Settings
from everbus.gateway.identity.token_exchange import TokenRequest

HOUSE = Path(__file__).parents[2]
REFERENCE = HOUSE / "docs" / "reference"
VECTORS = json.loads((REFERENCE / "vectors.json").read_text())
TYPES = {**vars(messages), "EventPage": EventPage, "TokenRequest": TokenRequest}
KIND = re.compile(r'"((?:session|participant|timeline|checkpoint)\.\w+ed|\w+\.lost)"')


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_is_what_the_code_makes(name):
    """
    Else `make docs` and commit it.
    """
    assert (REFERENCE / name).read_text() == PAGES[name]()


def test_no_other_page_lies_among_the_generated_ones():
    assert {path.name for path in REFERENCE.iterdir()} == set(PAGES)


def test_every_setting_has_a_meaning():
    assert set(MEANINGS) == set(Settings.model_fields)


def test_every_kind_of_event_that_the_handlers_make_is_listed():
    sources = [*(HOUSE / "handlers").glob("*.py"), HOUSE / "bus" / "events.py"]
    made = {kind for path in sources for kind in KIND.findall(path.read_text())}

    assert made | {"session.rehydrated", "session.broadcast"} == set(SESSION_EVENTS)


def test_the_description_of_the_bus_is_yaml_without_a_dead_reference():
    text = (REFERENCE / "asyncapi.yaml").read_text()
    read = yaml.safe_load(text)

    # By way of JSON: a tuple of the code is a list in the file.
    assert read == json.loads(json.dumps(description()))
    for target in set(re.findall(r'"\$ref": "#/([^"]+)"', text)):
        found = read
        for part in target.split("/"):
            found = found[part]


def test_the_description_of_the_edge_is_small_enough_to_read_at_once():
    assert len((REFERENCE / "openapi.json").read_bytes()) < 1_000_000


def without_bytes(value):
    """
    A vector's JSON, with its bytes.
    """
    if isinstance(value, dict):
        if set(value) == {"$hex"}:
            return bytes.fromhex(value["$hex"])
        return {key: without_bytes(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_bytes(one) for one in value]
    return value


@pytest.mark.parametrize("vector", VECTORS["values"], ids=lambda one: one["name"])
def test_the_codec_reads_and_writes_a_vector(vector):
    packed, kind = bytes.fromhex(vector["msgpack"]), TYPES[vector["type"]]

    read = unpack_envelope(packed) if kind is Envelope else unpack(packed, kind)

    assert (pack_envelope(read) if kind is Envelope else pack(read)) == packed


@pytest.mark.parametrize("vector", VECTORS["values"], ids=lambda one: one["name"])
def test_a_vectors_json_is_the_same_value(vector):
    kind = TYPES[vector["type"]]
    plain = without_bytes(vector["json"])
    if kind in (Envelope, messages.Reply):
        # Its body stays encoded when the codec reads it.
        plain = {
            key: msgspec.Raw(pack(one)) if key == "body" else one
            for key, one in plain.items()
        }

    made = msgspec.convert(plain, kind)

    assert pack(made).hex() == vector["msgpack"]


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda one: one["name"])
def test_what_the_vectors_call_refused_is_refused(vector):
    with pytest.raises(Malformed) as refused:
        unpack_envelope(bytes.fromhex(vector["msgpack"]))

    assert refused.value.details["cause"] == vector["cause"]


def test_partitions_are_those_of_the_vectors():
    for one in VECTORS["partitions"]:
        found = keys.partition_of(one["session"], one["partitions"])
        assert found == one["partition"], one
