"""
Environments that deployments give our processes, put to the settings themselves.
"""

from collections.abc import Mapping
from pathlib import Path

from everbus.compose.cli import Everbus
from everbus.compose.settings import FROM_FILE, PREFIX, Settings, load_settings

# What the file of a secret could say; each is of the form that the setting wants.
CONTENTS = {
    "redis_url": "redis://user:secret@bus:6379",
    "mongo_url": "mongodb://user:secret@mongo:27017/?replicaSet=everbus",
    "jwt_keys": '[{"kid": "one", "algorithm": "ES256", "key": "a public key"}]',
}


def settings_of(environ: Mapping[str, str], folder: Path) -> Settings:
    """
    The settings of a process with that environment; its secrets' files are made
    in *folder*, by the settings' names.

    Raises:
        SettingsError: such a process would not start.
    """
    given = dict(environ)
    for name in environ:
        if name.startswith(PREFIX) and name.endswith("_FILE"):
            field = name.removeprefix(PREFIX).removesuffix("_FILE").lower()
            file = folder / field
            file.write_text(CONTENTS.get(field, "a secret of thirty-two bytes, or so"))
            given[name] = str(file)

    return load_settings(given)


def told_secrets(environ: Mapping[str, str]) -> set[str]:
    """
    The names of secrets that an environment has as they are, for anybody to read.
    """
    secrets = {f"{PREFIX}{field.upper()}" for field in FROM_FILE}

    return secrets & set(environ)


def commands() -> set[str]:
    """
    The commands of `everbus`.
    """
    return set(Everbus.table)
