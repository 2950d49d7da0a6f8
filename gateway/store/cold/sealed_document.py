"""
The sensitive fields of an archive's document, sealed and opened.

Sealed repeatably: an archive that is made twice has the same objects and the same name.
Chunks need nothing of this, since their entries come sealed.
"""

from typing import Any

import msgspec

from everbus.bus.messages import Session, pack
from everbus.gateway.sealing.cipher import ValuePlace, is_sealed
from everbus.gateway.sealing.sealing import Sealing, milliseconds

CONTEXT = "full_context"


def with_sealed(document: Any, sealing: Sealing) -> Any:  # dict of msgpack values
    """
    A document of `session` and `full_context`, with its sensitive fields sealed.
    """
    session: Session = document["session"]
    key = sealing.keyring.active(session.tenant)
    if key is None:
        raise AssertionError("the writer has made the keys ready")

    def sealed(name: str, value: Any) -> bytes:
        return key.seal_repeatably(pack(value), _place(session, name))

    fields = {
        name: sealed(name, getattr(session, name))
        for name in sorted(sealing.fields - {CONTEXT})
    }
    context = document[CONTEXT]
    if CONTEXT in sealing.fields:
        context = sealed(CONTEXT, context)

    return {"session": msgspec.structs.replace(session, **fields), CONTEXT: context}


def opened(raw: bytes, sealing: Sealing) -> bytes:
    """
    The packed document as it was before its fields were sealed.

    Raises:
        SealBroken: a field was changed, or moved from another session.
        KeyMissing: its key is unknown, or was dropped.
    """
    document = msgspec.msgpack.decode(raw)
    session = document["session"]
    known = msgspec.convert(
        {name: v for name, v in session.items() if not is_sealed(v)}, Session
    )
    for name, value in session.items():
        session[name] = sealing.opened(value, _place(known, name))
    document[CONTEXT] = sealing.opened(document[CONTEXT], _place(known, CONTEXT))

    return pack(document)


def _place(session: Session, name: str) -> ValuePlace:
    return ValuePlace(session.id, milliseconds(session.created_at), f"archived {name}")
