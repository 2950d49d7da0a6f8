"""
Settings → tiers: which stores a process uses, and what it says if it cannot.
"""

import msgspec
import pytest

from everbus.compose.exit_codes import Failed
from everbus.compose.settings import Settings, SettingsError, load_settings
from everbus.compose.testing.memory.warm import MemoryWarm
from everbus.compose.tier_settings import (
    archives_of,
    cold_tier,
    fields_type,
    lower_tiers,
    warm_tier,
)
from everbus.gateway.store.breaker import GuardedTier
from everbus.gateway.store.cold.local import FolderCold, MemoryCold
from everbus.gateway.store.cold.s3 import S3Cold
from everbus.gateway.store.reader import NoTiers, Reader


class Model(msgspec.Struct):
    """
    What an application adds to its sessions.
    """

    current_model: str = ""


NO_STRUCT = 7


def settings(**given) -> Settings:
    return load_settings({f"EVERBUS_{n.upper()}": str(v) for n, v in given.items()})


async def test_without_a_url_there_is_no_tier():
    chosen = settings()

    assert warm_tier(chosen) is None
    assert cold_tier(chosen) is None
    assert archives_of(chosen) is None
    async with lower_tiers(chosen) as tiers:
        assert isinstance(tiers, NoTiers)


def test_s3_and_a_folder_are_chosen_by_name(tmp_path):
    s3 = cold_tier(settings(s3_endpoint="http://127.0.0.1:9"))
    folder = cold_tier(settings(cold_store="folder", cold_folder=tmp_path))

    assert isinstance(s3.tier, S3Cold)
    assert isinstance(folder.tier, FolderCold)


async def test_a_class_of_the_users_own_is_behind_a_breaker_as_well():
    chosen = settings(
        warm_store="everbus.compose.testing.memory.warm:MemoryWarm",
        cold_store="everbus.gateway.store.cold.local:MemoryCold",
    )
    warm, cold = warm_tier(chosen), cold_tier(chosen)

    assert isinstance(warm, GuardedTier)
    assert isinstance(warm.tier, MemoryWarm)
    assert isinstance(cold, GuardedTier)
    assert isinstance(cold.tier, MemoryCold)
    async with lower_tiers(chosen) as tiers:
        assert isinstance(tiers, Reader)


@pytest.mark.parametrize(
    "path", ["no.such.module:Store", "everbus.compose.testing.memory.warm:NoSuchStore"]
)
def test_a_class_that_cannot_be_had_is_told_with_its_setting(path):
    with pytest.raises(Failed, match=f"EVERBUS_WARM_STORE={path}"):
        warm_tier(settings(warm_store=path))


def test_a_path_that_is_none_is_refused_at_once():
    with pytest.raises(SettingsError, match="EVERBUS_COLD_STORE=gcs"):
        settings(cold_store="gcs")


def test_a_folder_store_needs_its_folder():
    with pytest.raises(Failed, match="EVERBUS_COLD_FOLDER"):
        cold_tier(settings(cold_store="folder"))


def test_the_applications_fields_are_typed_by_its_struct():
    assert fields_type(settings()) is None
    assert fields_type(settings(session_fields=f"{__name__}:Model")) is Model
    with pytest.raises(Failed, match=r"no msgspec\.Struct"):
        fields_type(settings(session_fields=f"{__name__}:NO_STRUCT"))
