"""
Text → the words that a session is found by.
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from bus.messages import Session

# What a session is found by at most; each is a key in the warm tier's index.
MAX_WORDS = 256
MAX_WORD_CHARS = 64

_WORD = re.compile(r"[^\W_]+")


def words_in(text: str) -> Iterator[str]:
    """
    The words of *text* in order: runs of letters and digits, without case, cut at
    MAX_WORD_CHARS; letters of the same meaning (NFKC) are the same letter.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()

    return (word[:MAX_WORD_CHARS] for word in _WORD.findall(plain))


def words_of(session: Session) -> list[str]:
    """
    The first MAX_WORDS different words of owner, tags, summary and fields.
    """
    texts = [session.owner_id, *session.tags]
    texts += _texts((session.context_summary, session.fields))
    found: dict[str, None] = {}
    for text in texts:
        for word in words_in(text):
            found[word] = None
            if len(found) == MAX_WORDS:
                return list(found)
    return list(found)


def _texts(value: Any) -> Iterator[str]:
    """
    The texts and integers within a JSON value, in order; at most 32 levels deep.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)
