"""
Text → the search words of a session.

Scripts that write no spaces between words (Chinese, Japanese, Thai, Khmer, Lao,
Burmese), and Korean, whose particles stick to the words, are cut into pairs of
neighbouring characters, as search engines do without a dictionary: what is looked for
is cut the same way, and found wherever its pairs are.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import regex

from everbus.bus.messages import Session

# Stored with the words: what an earlier version stored is made anew by the archiver.
WORDS_VERSION = 2
# Most search words of a session; each is a key in the warm tier's index.
MAX_WORDS = 256
MAX_WORD_CHARS = 64

_UNSPACED = (
    r"\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}ー"
    r"\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}"
)
# Marks belong to the letter before them: without them Indic words fall apart. An emoji
# is all that is joined to one picture: a person and a profession, the two of a flag.
_PIECES = regex.compile(
    rf"(?P<run>(?:[[\p{{L}}\p{{N}}]&&[{_UNSPACED}]][\p{{M}}]*)+)"
    rf"|(?P<word>(?:[[\p{{L}}\p{{N}}]--[{_UNSPACED}]][\p{{M}}]*)+)"
    r"|(?P<emoji>\p{Regional_Indicator}{2}"
    r"|\p{Extended_Pictographic}\p{M}*(?:\u200d\p{Extended_Pictographic}\p{M}*)*)",
    regex.V1,
)
# Most texts: three times as fast.
_ASCII = re.compile(r"[a-z0-9]+")
_CHARACTERS = regex.compile(r".\p{M}*", regex.V1)
# Vowels and accents that Arabic and Hebrew may leave out, and the Arabic line filler;
# the dot that lower case leaves on a Turkish i; the forms of an emoji.
_OPTIONAL = regex.compile(
    r"[\u0591-\u05bd\u05bf\u05c1-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670"
    r"\u06d6-\u06ed]|(?<=i)\u0307|[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]"
)


def words_in(text: str) -> Iterator[str]:
    """
    The words of *text* in order: runs of letters and digits, without case, cut at
    MAX_WORD_CHARS; pairs of characters where a script writes no spaces; emoji.

    Letters of the same meaning (NFKC) are the same letter, and so are both Turkish i.
    """
    if text.isascii():
        yield from (word[:MAX_WORD_CHARS] for word in _ASCII.findall(text.lower()))
        return
    for piece in _pieces(text):
        if piece["run"]:
            yield from _pairs(piece["run"])
        else:
            yield piece[0][:MAX_WORD_CHARS]


def words_of(session: Session) -> list[str]:
    """
    The first MAX_WORDS different words of owner, tags, summary and fields, then as
    many single characters of unspaced scripts as there is room for.
    """
    values = (session.context_summary, session.fields)

    return words_in_values(session.owner_id, session.tags, values)


def words_in_values(owner: str, tags: Sequence[str], values: Any) -> list[str]:
    """
    As `words_of`, of an owner, tags and JSON values.
    """
    texts = [owner, *tags, *_texts(values)]
    found: dict[str, None] = {}
    for word in chain(_each(texts, words_in), _each(texts, _singles)):
        found[word] = None
        if len(found) == MAX_WORDS:
            break
    return list(found)


def _each(texts: list[str], cut: Any) -> Iterator[str]:  # a function of a text
    return chain.from_iterable(map(cut, texts))


def _pairs(run: str) -> Iterator[str]:
    characters = _CHARACTERS.findall(run)
    if len(characters) == 1:
        yield run
    yield from ("".join(pair) for pair in pairwise(characters))


def _singles(text: str) -> Iterator[str]:
    """
    The characters that a search for one of them alone would miss.
    """
    if text.isascii():
        return
    for piece in _pieces(text):
        if piece["run"]:
            yield from _CHARACTERS.findall(piece["run"])


def _pieces(text: str) -> Iterator[regex.Match[str]]:
    plain = unicodedata.normalize("NFKC", text).casefold().replace("\u0131", "i")

    return _PIECES.finditer(_OPTIONAL.sub("", plain))


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
