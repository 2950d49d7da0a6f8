"""
Refusals: permanent codes, what they carry, and the way back from the wire.
"""

import pytest

from everbus.bus import errors
from everbus.bus.errors import Defect, EverbusError, Invalid, Rejection, error_of

STATUS_OF = {
    "version_conflict": 409,
    "not_found": 404,
    "already_exists": 409,
    "forbidden": 403,
    "unauthenticated": 401,
    "invalid": 422,
    "too_large": 413,
    "expired": 408,
    "unavailable": 503,
    "overloaded": 429,
    "timeout": 504,
    "superseded": 409,
    "cancelled": 409,
    "defect": 500,
}


def test_the_codes_and_their_statuses_are_permanent():
    """
    Other people's programs rely on them; a new code may join, none may leave.
    """
    statuses = {code: kind.status for code, kind in errors.ERRORS.items()}

    assert statuses == STATUS_OF


@pytest.mark.parametrize("code", STATUS_OF)
def test_an_error_comes_back_from_the_wire_as_itself(code):
    sent = errors.ERRORS[code]("no, since", field="patch", limit=3)

    found = error_of(sent.code, sent.message, sent.details)

    assert type(found) is type(sent)
    assert (found.code, found.message, str(found)) == (code, "no, since", "no, since")
    assert found.details == {"field": "patch", "limit": 3}


def test_a_code_from_the_future_is_a_defect():
    found = error_of("teapot", "short and stout", {"handle": "here"})

    assert type(found) is Defect
    assert (found.message, found.details) == ("short and stout", {"handle": "here"})


@pytest.mark.parametrize("name", ["message", "self", "code", "details", "args"])
def test_a_detail_may_have_any_name(name):
    """
    Details come off the wire, so no name of theirs may break the reader.
    """
    found = error_of("invalid", "no", {name: 1})

    assert (found.message, found.details) == ("no", {name: 1})
    assert type(found).code == "invalid"


def test_a_version_conflict_tells_the_current_version():
    found = error_of("version_conflict", "moved on", {"current_version": 7})

    assert isinstance(found, errors.VersionConflict)
    assert found.current_version == 7


def test_a_reply_timeout_tells_the_id_to_ask_with():
    found = error_of("timeout", "no reply", {"command_id": "i1.0.1"})

    assert isinstance(found, errors.ReplyTimeout)
    assert found.command_id == "i1.0.1"


def test_rejections_are_final_and_the_other_families_are_not():
    """
    A family decides what happens to a command, so nothing may be of two.
    """
    final = {
        code for code, kind in errors.ERRORS.items() if issubclass(kind, Rejection)
    }

    assert set(STATUS_OF) - final == {"unavailable", "timeout", "defect"}
    assert issubclass(errors.ReplyTimeout, errors.Unavailable)
    assert not issubclass(errors.Malformed, Rejection | errors.Unavailable)


def test_the_wire_knows_invalid_as_a_rejection():
    """
    A malformed entry shares the code, but is never replied to.
    """
    assert type(error_of("invalid", "no", {})) is Invalid


@pytest.mark.parametrize("kind", errors.ERRORS.values())
def test_every_error_is_of_our_family(kind):
    assert issubclass(kind, EverbusError)
    assert kind.__doc__
