"""
Text → the words that a session is found by, and cursors through what was found.
"""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everbus.bus.errors import Invalid
from everbus.gateway.store.catalogue_query import (
    PageCursor,
    checked,
    cursor_of,
    place_in,
)
from everbus.gateway.store.search_words import (
    MAX_WORD_CHARS,
    MAX_WORDS,
    words_in,
    words_of,
)
from everbus.handlers.commands import ListSessions
from tests.builders import a_session

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Tides, and the MOON!", ["tides", "and", "the", "moon"]),
        ("ada_lovelace@x-y.org", ["ada", "lovelace", "x", "y", "org"]),
        ("Straße ﬁne", ["strasse", "fine"]),
        ("приливы 潮汐 café", ["приливы", "潮汐", "café"]),
        ("关于潮汐的", ["关于", "于潮", "潮汐", "汐的"]),
        ("海 東京タワー", ["海", "東京", "京タ", "タワ", "ワー"]),
        ("바다에서 만나", ["바다", "다에", "에서", "만나"]),
        ("ทะเล", ["ทะ", "ะเ", "เล"]),
        ("İSTANBUL \u0131sparta Isparta", ["istanbul", "isparta", "isparta"]),
        ("مُحَمَّد كـتاب שָׁלוֹם", ["محمد", "كتاب", "שלום"]),
        ("हिन्दी में नमस्ते", ["हिन्दी", "में", "नमस्ते"]),
        ("🚀❤️ 👍🏽 👩‍💻 🇩🇪", ["🚀", "❤", "👍", "👩‍💻", "🇩🇪"]),
        ("gpt4 3.5", ["gpt4", "3", "5"]),
        (" .,;_- ", []),
        ("x" * 100, ["x" * MAX_WORD_CHARS]),
    ],
)
def test_words_are_runs_of_letters_and_digits_without_case(text, words):
    assert words == list(words_in(text))


def test_a_session_is_found_by_owner_tags_summary_and_fields():
    session = a_session(
        owner_id="ada",
        tags=("Sea-Side",),
        context_summary={"topic": "tides", "deep": [{"a": ["moon"]}], "n": 7},
        fields={"model": "gpt", "on": True, "x": 1.5, "none": None},
        work_in_progress={"secret": "undertow"},
    )

    words = ["ada", "sea", "side", "tides", "moon", "7", "gpt"]
    assert words == words_of(session)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("我们关于潮汐的谈话", "潮汐"),
        ("我们关于潮汐的谈话", "潮"),
        ("明日の会議について", "会議"),
        ("바다에서 만나요", "바다"),
        ("การประชุมสำคัญ", "ประชุม"),
        ("İstanbul'da", "istanbul"),
        ("كِتَابٌ", "كتاب"),
        ("ship it 🚀", "🚀"),
        ("हिन्दी", "हिन्दी"),
    ],
)
def test_a_word_is_found_in_any_script(text, wanted):
    words = set(words_of(a_session(context_summary={"text": text})))

    assert set(words_in(wanted)) <= words


def test_a_session_has_so_many_words_at_most():
    """
    Each is a key in an index; a summary full of text must not make thousands.
    """
    text = " ".join(f"w{n} w{n}" for n in range(1000))

    words = words_of(a_session(context_summary={"text": text}))

    assert len(words) == MAX_WORDS == len(set(words))


@given(st.text())
def test_what_is_looked_for_is_cut_as_what_is_kept(text):
    session = a_session(context_summary={"text": text})
    looked_for = set(words_in(text))

    assert len(looked_for) > 200 or looked_for <= set(words_of(session))


@given(
    st.integers(0, 2**47),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True),
)
def test_a_cursor_leads_to_its_place(ms, identifier):
    place = PageCursor(EPOCH + timedelta(milliseconds=ms), identifier)

    cursor = cursor_of(place)

    assert place_in(cursor) == place
    assert cursor.isascii()
    assert not set(cursor) & set("+/=&?# ")


@pytest.mark.parametrize(
    "text", ["", "x", "ä", "AAAA", "MTIgLi4v", "OTk5OTk5OTk5OTk5OTk5OTkgYQ"]
)
def test_whatever_is_no_cursor_is_refused(text):
    with pytest.raises(Invalid) as refused:
        place_in(text)

    assert refused.value.details == {"field": "cursor"}


@given(st.text())
def test_any_text_is_a_place_or_refused(text):
    try:
        place = place_in(text)
    except Invalid:
        return
    assert place == place_in(cursor_of(place))


def test_words_are_looked_for_once_the_longest_first():
    assert checked(ListSessions(text="a Moon tides moon")) == ["tides", "moon", "a"]
    assert checked(ListSessions()) == []
