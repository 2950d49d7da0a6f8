"""
Entries of a session's access list (ACL): whom each of them admits.

| entry | admits |
|---|---|
| `user:ada` | the principal ada of every role but `mad` |
| `mad:fiedler` | the MAD fiedler |
| `host:fiedler` | the MAD fiedler, which may also add participants |
| `participant:fiedler` | the MAD fiedler, from its adding to its removal |
| `ada` | every principal called ada, a MAD or not: from older versions |

A name that itself begins with a prefix is admitted by a prefixed entry alone.
"""

from collections.abc import Iterable

from everbus.bus.messages import check_name

USER = "user:"
MAD = "mad:"
PARTICIPANT = "participant:"
# A MAD that creates a session for another owner brings in the MADs that work on it.
HOST = "host:"
PREFIXES = (USER, MAD, PARTICIPANT, HOST)
_OF_MADS = (MAD, PARTICIPANT, HOST)


def entry_for(name: str, *, is_mad: bool) -> str:
    """
    The entry that admits the principal *name* and no other.
    """
    return f"{MAD if is_mad else USER}{name}"


def creators_entry(name: str, *, is_mad: bool) -> str:
    """
    The entry of the principal that creates a session for another owner.
    """
    return f"{HOST}{name}" if is_mad else entry_for(name, is_mad=False)


def entries_admitting(entry: str) -> tuple[str, ...]:
    """
    All entries that admit the principal of *entry*, itself first.

    A plain name has no role: it alone admits it.
    """
    prefix, name = _split(entry)
    if not prefix:
        return (entry,)
    plain = () if is_prefixed(name) else (name,)
    if prefix == USER:
        return (entry, *plain)
    return (*(f"{one}{name}" for one in _OF_MADS), *plain)


def admits(acl: Iterable[str], name: str, *, is_mad: bool) -> bool:
    """
    Whether the list admits the principal *name*.
    """
    # Most lists hold few entries, and lists are long only where many share.
    return any(one in acl for one in entries_admitting(entry_for(name, is_mad=is_mad)))


def readers_of(owner: str, acl: Iterable[str]) -> list[str]:
    """
    Owner and ACL as one list in which no owner is taken for an entry.
    """
    first = entry_for(owner, is_mad=False) if is_prefixed(owner) else owner

    return list(dict.fromkeys((first, *acl)))


def is_prefixed(entry: str) -> bool:
    """
    Whether the entry names its kind of principal.
    """
    return entry.startswith(PREFIXES)


def check_entry(value: str, field: str) -> str:
    """
    Return *value* if it is an entry of an access list.

    Raises:
        Invalid: naming *field*.
    """
    check_name(_split(value)[1] if isinstance(value, str) else value, field)

    return value


def _split(entry: str) -> tuple[str, str]:
    prefix = next((one for one in PREFIXES if entry.startswith(one)), "")

    return prefix, entry.removeprefix(prefix)
