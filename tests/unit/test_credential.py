"""
A token shown once, and what becomes of it: granted, refused, unheard, renewed.
"""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
import structlog

from everbus.bus import credential as module
from everbus.bus.credential import Credential
from everbus.bus.errors import Forbidden, Unauthenticated, Unavailable
from everbus.bus.keys import token as token_channel
from everbus.bus.messages import unpack
from everbus.bus.server_errors import CommandRefused

REFUSED = ("unauthenticated", "the token is not valid here")
LASTS_S = 600.0


class Managers:
    """
    Who hears a token: each in *answers* says once what it says, in its order.

    Attributes:
        shown: what was shown, in order.
        answers: showing → what is said to it at once; later ones as the last.
        heard: how many hear; None: as many as answer.
    """

    def __init__(self, *answers):
        self.shown = []
        self.answers = [list(one) for one in answers]
        self.heard = None
        self.fault = None
        self.closed = 0
        self.credential = None

    def serve(self, token):
        self.credential = Credential("redis://127.0.0.1:1", "m", "i", token)
        self.credential._wire = self
        return self.credential

    async def call(self, *command):
        name, channel, packed = command
        assert (name, channel) == ("PUBLISH", token_channel("m"))
        if self.fault is not None:
            raise self.fault
        assert packed.startswith(module.UNLOGGED)
        await asyncio.sleep(0)
        self.shown.append(unpack(packed.removeprefix(module.UNLOGGED), dict))
        now = min(len(self.shown), len(self.answers)) - 1
        said = self.answers[now] if self.answers else []
        for one in said:
            self.say(one)
        return len(said) if self.heard is None else self.heard

    async def close(self):
        self.closed += 1

    def say(self, answer, showing=None):
        number = self.shown[-1]["showing"] if showing is None else showing
        self.credential.receive({"showing": number} | answer)


def granted(grant=b"grant", lasts_s=LASTS_S):
    return {"grant": grant, "lasts_s": lasts_s}


def refused(code="unauthenticated", message=REFUSED[1]):
    return {"refused": [code, message]}


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    monkeypatch.setattr(module, "ANSWER_S", 0.02)
    monkeypatch.setattr(module, "UNHEARD_S", 0.001)
    monkeypatch.setattr(module, "RETRY_S", 0.005)


@pytest.fixture(autouse=True)
def logs():
    with structlog.testing.capture_logs() as records:
        yield records


@asynccontextmanager
async def renewing(credential):
    task = asyncio.create_task(credential.run())
    try:
        async with asyncio.timeout(5):
            yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(claim):
    async with asyncio.timeout(5):
        while not claim():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.001)


class TestShowing:
    async def test_the_grant_is_what_a_manager_gave(self):
        managers = Managers([granted()])
        credential = managers.serve("token")

        assert credential.grant == b""
        assert await credential.current() == credential.grant == b"grant"
        assert managers.shown == [{"instance": "i", "token": "token", "showing": 1}]
        assert managers.closed == 1

    async def test_it_is_shown_once_however_many_ask_at_the_same_time(self):
        managers = Managers([granted()])
        credential = managers.serve("token")

        grants = await asyncio.gather(*(credential.current() for _ in range(9)))

        assert (grants, len(managers.shown)) == ([b"grant"] * 9, 1)

    async def test_a_lost_answer_is_asked_for_again(self):
        managers = Managers([], [], [granted()])
        managers.heard = 1
        credential = managers.serve("token")

        assert await credential.current() == b"grant"
        assert [one["showing"] for one in managers.shown] == [1, 1, 1]

    async def test_an_answer_that_comes_late_counts(self):
        managers = Managers([])
        managers.heard = 1
        credential = managers.serve("token")
        asking = asyncio.create_task(credential.current())
        await until(lambda: managers.shown)
        managers.say(granted())

        assert await asking == b"grant"

    async def test_of_two_managers_either_will_do(self):
        managers = Managers([granted(b"one"), granted(b"two")])
        credential = managers.serve("token")

        assert await credential.current() in (b"one", b"two")

    async def test_nobody_there_is_unavailable_and_told_with_the_remedy(self):
        credential = Managers().serve("token")

        with pytest.raises(Unavailable, match="everbus manager"):
            await credential.current()

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            (CommandRefused("ERR what"), Unavailable),
            (Unavailable("away"), Unavailable),
            (Forbidden("NOPERM"), Forbidden),
        ],
    )
    async def test_a_bus_that_does_not_let_it_be_shown_is_told(self, fault, error):
        managers = Managers()
        managers.fault = fault
        credential = managers.serve("token")

        with pytest.raises(error):
            await credential.current()

    @pytest.mark.parametrize(
        "said",
        [
            {"superseded": 3},
            {"events": []},
            {"showing": "1", "grant": b"x", "lasts_s": 9},
            {"showing": 1, "grant": "text", "lasts_s": 9},
            {"showing": 1, "grant": b"x", "lasts_s": "long"},
            {"showing": 1, "refused": ["unauthenticated"]},
            {"showing": 2, "grant": b"of another showing", "lasts_s": 9},
            {"showing": 0, "refused": REFUSED},
        ],
    )
    async def test_what_is_no_answer_is_ignored(self, said):
        managers = Managers([said, granted()])
        managers.say = lambda one: managers.credential.receive({"showing": 1} | one)
        credential = managers.serve("token")

        assert await credential.current() == b"grant"

    def test_no_token_is_refused_before_anything_is_shown(self):
        with pytest.raises(Unauthenticated, match="no token"):
            Managers().serve("")

    @pytest.mark.parametrize(
        ("token", "why"),
        [("x" * 8193, "has 8,193 bytes; .* 8,192"), ("\ud800", "ASCII")],
        ids=("large", "no text"),
    )
    async def test_what_no_manager_hears_is_refused_before_anything_is_shown(
        self, token, why
    ):
        """
        They answer to no message beyond their limit: it would wait for them in vain.
        """
        managers = Managers()

        with pytest.raises(Unauthenticated, match=why):
            managers.serve(token)
        with pytest.raises(Unauthenticated, match=why):
            await managers.serve(lambda: token).current()
        assert managers.shown == []


class TestRefusal:
    async def test_is_told_in_the_words_of_the_manager(self):
        credential = Managers([refused()]).serve("token")

        with pytest.raises(Unauthenticated) as told:
            await credential.current()
        assert told.value.message == REFUSED[1]

    async def test_by_one_manager_is_overruled_by_the_grant_of_another(self):
        """
        While keys change, one of them may know a key that the other does not.
        """
        for said in ([refused(), granted()], [granted(), refused()]):
            credential = Managers(said).serve("token")

            assert await credential.current() == b"grant"

    async def test_waits_for_the_others(self):
        managers = Managers([refused()])
        managers.heard = 2
        credential = managers.serve("token")
        asking = asyncio.create_task(credential.current())
        await until(lambda: managers.shown)
        await asyncio.sleep(0)
        managers.say(granted())

        assert await asking == b"grant"

    async def test_but_not_for_one_that_says_nothing(self):
        managers = Managers([refused()])
        managers.heard = 2
        credential = managers.serve("token")

        with pytest.raises(Unauthenticated):
            await credential.current()
        assert len(managers.shown) == 1

    async def test_of_a_manager_that_cannot_judge_now_passes(self):
        said = [refused(), refused("unavailable", "its key cannot be looked for")]
        credential = Managers(said).serve("token")

        with pytest.raises(Unavailable, match="cannot be looked for"):
            await credential.current()

    async def test_a_refused_one_can_be_asked_again(self):
        managers = Managers([refused()], [granted()])
        credential = managers.serve("token")

        with pytest.raises(Unauthenticated):
            await credential.current()
        assert await credential.current() == b"grant"


async def maybe(given):
    return await given if asyncio.iscoroutine(given) else given


class TestRenewal:
    async def test_comes_before_the_end_and_from_a_fresh_token(self):
        tokens = iter(("first", "second"))
        managers = Managers([granted(b"1", lasts_s=0.2)], [granted(b"2")])
        credential = managers.serve(lambda: next(tokens))

        async with renewing(credential):
            assert await credential.current() == b"1"
            began = time.monotonic()
            await until(lambda: credential.grant == b"2")
            assert time.monotonic() - began < 0.2
        assert [one["token"] for one in managers.shown] == ["first", "second"]
        assert [one["showing"] for one in managers.shown] == [1, 2]

    async def test_delays_nobody(self):
        """
        As long as the old one lasts it is what `current` gives, at once.
        """
        managers = Managers([granted(b"1", lasts_s=0.2)], [])
        credential = managers.serve(lambda: "token")
        managers.heard = 1

        async with renewing(credential):
            await credential.current()
            await until(lambda: len(managers.shown) > 1)
            assert credential._obtaining.locked()
            with pytest.raises(StopIteration) as at_once:
                credential.current().send(None)
            assert at_once.value.value == b"1"

    async def test_that_fails_is_tried_again_and_the_old_one_stays(self, logs):
        managers = Managers([granted(b"1", 0.2)], [refused()], [], [granted(b"2")])
        credential = managers.serve(lambda: "token")

        async with renewing(credential):
            await credential.current()
            await until(lambda: len(managers.shown) == 3)
            assert credential.grant == b"1"
            await until(lambda: credential.grant == b"2")
        assert logs[0]["event"] == "grant.not_renewed"
        assert "token" not in logs[0]["error"].replace("the token is not valid", "")

    async def test_refused_after_the_end_is_final(self):
        managers = Managers([granted(b"1", 0.0)], [refused()])
        credential = managers.serve(lambda: "token")
        await credential.current()

        with pytest.raises(Unauthenticated):
            await credential.current()

    async def test_never_comes_for_a_token_that_stays_the_same(self):
        managers = Managers([granted(b"1", lasts_s=0.0)], [granted(b"2")])
        credential = managers.serve("token")

        async with renewing(credential):
            assert await credential.current() == b"1"
            # Its end: the managers would refuse commands, long after the call.
            for refused_at_once in (credential.check, credential.current):
                with pytest.raises(Unauthenticated, match="has ended"):
                    await maybe(refused_at_once())
        assert len(managers.shown) == 1

    async def test_an_answer_to_an_earlier_token_does_not_count(self):
        managers = Managers([granted(b"1", lasts_s=0.0)], [], [granted(b"2")])
        credential = managers.serve(lambda: "token")
        await credential.current()
        managers.heard = 1
        asking = asyncio.create_task(credential.current())
        await until(lambda: len(managers.shown) == 2)
        managers.say(refused(), showing=1)

        assert await asking == b"2"

    @pytest.mark.parametrize("failing", [ZeroDivisionError, None, ""])
    async def test_a_function_that_fails_is_asked_again(self, failing):
        """
        It is code of the MAD's own: an issuer that is away must not end anything.
        """

        def source():
            if failing is ZeroDivisionError:
                raise ZeroDivisionError("secret of the issuer")
            return failing

        credential = Managers([granted()]).serve(source)

        with pytest.raises(Unavailable, match="token=") as told:
            await credential.current()
        assert "secret" not in told.value.message
        credential._token = lambda: "token"
        assert await credential.current() == b"grant"

    async def test_a_function_that_hangs_is_not_waited_for(self, monkeypatch):
        monkeypatch.setattr(module, "SOURCE_S", 0.01)
        credential = Managers([granted()]).serve(lambda: time.sleep(0.1))

        with pytest.raises(Unavailable, match="TimeoutError"):
            await credential.current()


class TestDoubt:
    async def test_has_the_grant_renewed(self, monkeypatch):
        """
        The managers' key has changed: the same token gets another grant.
        """
        monkeypatch.setattr(module, "INVALIDATE_EVERY_S", 0.0)
        managers = Managers([granted(b"old key")], [granted(b"new key")])
        credential = managers.serve("token")

        async with renewing(credential):
            await credential.current()
            credential.invalidate()
            await until(lambda: credential.grant == b"new key")

    async def test_shows_the_token_no_more_often_than_now_and_then(self):
        managers = Managers([granted()])
        credential = managers.serve("token")

        async with renewing(credential):
            await credential.current()
            for _ in range(100):
                credential.invalidate()
                await asyncio.sleep(0)
        assert len(managers.shown) == 1

    async def test_of_a_token_that_has_expired_asks_once(self, monkeypatch):
        monkeypatch.setattr(module, "INVALIDATE_EVERY_S", 0.0)
        managers = Managers([granted(b"old")], [refused()])
        credential = managers.serve("token")

        async with renewing(credential):
            await credential.current()
            credential.invalidate()
            await until(lambda: len(managers.shown) == 2)
            await asyncio.sleep(0.02)
        assert (len(managers.shown), credential.grant) == (2, b"old")


def test_neither_token_nor_grant_is_shown():
    credential = Managers().serve("eyJ-secret")
    credential.grant = b"secret grant"

    assert "secret" not in repr(credential)
