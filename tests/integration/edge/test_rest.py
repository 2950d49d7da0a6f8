"""
Every route of the API on a real bus: what it answers, and what it refuses.
"""

import asyncio
import json
import uuid

import httpx
import pytest

from tests.integration.edge.conftest import Edge, fresh

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def begun(client: httpx.AsyncClient, name: str) -> str:
    """
    The id of a session that *name* owns.
    """
    answer = await client.post("/sessions", json={"user_id": name})
    assert answer.status_code == 201, answer.text

    return answer.json()["id"]


async def test_a_session_from_its_creation_to_its_end(edge: Edge):
    name = fresh()
    async with edge.client(name) as client:
        made = await client.post("/sessions", json={"user_id": name})
        at = made.headers["Location"]
        patch = {"patch": {"context_summary": {"topic": "tides"}}}
        changed = await client.patch(at, json=patch | {"expected_version": 1})
        joined = await client.post(
            f"{at}/participants", json={"mad": "bob", "role": "host"}
        )
        left = await client.delete(f"{at}/participants/bob")
        rests = await client.post(f"{at}/suspend")
        wakes = await client.post(f"{at}/resume", json={"expected_version": 5})
        read = await client.get(at)
        ended = await client.delete(at, headers={"If-Match": read.headers["ETag"]})
        gone = await client.get(at)

    assert made.status_code == 201
    assert at == f"/sessions/{made.json()['id']}"
    assert (made.json()["version"], made.headers["ETag"]) == (1, '"1"')
    assert made.json()["owner_id"] == name
    assert changed.json()["context_summary"] == {"topic": "tides"}
    assert joined.json()["participants"]["bob"]["role"] == "host"
    assert left.json()["participants"] == {}
    assert (rests.json()["state"], wakes.json()["state"]) == ("dormant", "active")
    assert (read.status_code, read.json()["version"]) == (200, 6)
    assert (ended.status_code, ended.content) == (204, b"")
    assert (gone.status_code, gone.json()["code"]) == (404, "not_found")


async def test_no_route_ignores_a_query_parameter(edge: Edge):
    """
    Also those whose parameters are in the body: `?expected_version=3` is no condition.
    """
    name = fresh()
    async with edge.client(name) as client:
        at = f"/sessions/{await begun(client, name)}"
        described = (await client.get("/openapi.json")).json()["paths"]
        routes = [
            (method.upper(), path.replace("/sessions/{session_id}", at))
            for path, methods in described.items()
            for method in methods
            if path.startswith("/sessions")
        ]
        told = [
            await client.request(method, path, params={"nonsense": 1}, json={})
            if method in ("POST", "PATCH", "PUT")
            else await client.request(method, path, params={"nonsense": 1})
            for method, path in routes
        ]
        unchanged = await client.get(at)

    assert len(routes) > 12
    wrong = [
        (route, one.status_code, one.text[:80])
        for route, one in zip(routes, told, strict=True)
        if one.status_code != 422 or "nonsense" not in one.text
    ]
    assert wrong == []
    assert unchanged.json()["version"] == 1


async def test_the_timeline_is_appended_to_and_read_in_pages(edge: Edge):
    name = fresh()
    async with edge.client(name) as client:
        at = f"/sessions/{await begun(client, name)}/timeline"
        told = [await client.post(at, json={"entry": {"n": n}}) for n in range(5)]
        first = await client.get(at, params={"limit": 3})
        rest = await client.get(first.links["next"]["url"])
        newest = await client.get(at, params={"newest_first": True, "limit": 2})

    assert [one.json()["seq"] for one in told] == [1, 2, 3, 4, 5]
    assert {one.status_code for one in told} == {201}
    assert len({one.json()["command_id"] for one in told}) == 5
    assert [e["entry"]["n"] for e in first.json()["entries"]] == [0, 1, 2]
    assert first.json()["next"] == 3
    assert [e["seq"] for e in rest.json()["entries"]] == [4, 5]
    assert "next" not in rest.links
    assert {e["author"] for e in rest.json()["entries"]} == {name}
    assert [e["seq"] for e in newest.json()["entries"]] == [5, 4]
    assert newest.links["next"]["url"].endswith("before=4")


async def test_a_state_is_kept_and_brought_back(edge: Edge):
    name = fresh()
    async with edge.client(name) as client:
        at = f"/sessions/{await begun(client, name)}"
        for topic in ("tides", "moons"):
            await client.patch(at, json={"patch": {"context_summary": {"t": topic}}})
            kept = await client.post(f"{at}/checkpoints", json={"name": topic})
            assert kept.status_code == 201, kept.text
        listed = await client.get(f"{at}/checkpoints", params={"limit": 1})
        older = await client.get(listed.links["next"]["url"])
        [checkpoint] = older.json()["checkpoints"]
        back = await client.post(f"{at}/checkpoints/{checkpoint['id']}/restore")
        then = await client.get(f"{at}/versions/3")
        changes = await client.get(
            f"{at}/diff", params={"from_version": 2, "to_version": 3}
        )

    assert [c["name"] for c in listed.json()["checkpoints"]] == ["moons"]
    assert checkpoint["name"] == "tides"
    assert back.json()["context_summary"] == {"t": "tides"}
    assert back.json()["version"] == 4
    assert then.json()["context_summary"] == {"t": "moons"}
    assert changes.json()["patch"]["context_summary"] == {"t": "moons"}


async def test_the_full_context_comes_when_it_is_asked_for(edge: Edge):
    name = fresh()
    async with edge.client(name) as client:
        at = f"/sessions/{await begun(client, name)}"
        await client.patch(
            at,
            json={"patch": {"full_context": {"all": "of it"}}},
            headers={"Everbus-Durability": "warm"},
        )
        without = await client.get(at)
        full = await client.get(at, params={"full": True})

    assert without.json()["full_context"] is None
    assert full.json()["full_context"] == {"all": "of it"}


async def test_sessions_are_found_in_pages(edge: Edge):
    name = fresh()
    async with edge.client(name) as client:
        made = {await begun(client, name) for _ in range(3)}
        at = f"/sessions/{min(made)}"
        await client.patch(
            at,
            json={"patch": {"tags": ["deep"]}},
            headers={"Everbus-Durability": "warm"},
        )
        found, url = [], f"/sessions?owner={name}&limit=2"
        while url:
            page = await client.get(url)
            found += [one["id"] for one in page.json()["sessions"]]
            url = page.links.get("next", {}).get("url", "")
        tagged = await client.get("/sessions", params={"tag": "deep"})

    assert len(found) == len(set(found))
    # MongoDB may not have the others yet, but what was durable is there.
    assert min(made) in found
    assert set(found) <= made
    assert [one["id"] for one in tagged.json()["sessions"]] == [min(made)]


async def test_only_operators_and_admins_count_sessions(edge: Edge):
    async with edge.client(fresh()) as user, edge.client("op", "operator") as operator:
        refused = await user.get("/stats")
        told = await operator.get("/stats")

    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert told.json()["tiers"].keys() >= {"hot", "warm"}


async def test_a_broadcast_moves_no_version(edge: Edge):
    name = fresh()
    async with edge.client(name) as client:
        at = f"/sessions/{await begun(client, name)}"
        told = await client.post(f"{at}/broadcast", json={"message": {"typing": True}})
        after = await client.get(at)

    assert told.status_code == 200, told.text
    assert told.json()["command_id"]
    assert (after.json()["version"], after.json()["notices"]) == (1, 1)


class TestVersions:
    """
    What depends on a session's version.
    """

    async def test_a_change_of_another_version_is_refused_and_told(self, edge: Edge):
        name, patch = fresh(), {"patch": {"tags": ["a"]}}
        async with edge.client(name) as client:
            at = f"/sessions/{await begun(client, name)}"
            stated = await client.patch(at, json=patch | {"expected_version": 7})
            tagged = await client.patch(at, json=patch, headers={"If-Match": '"7"'})
            fits = await client.patch(at, json=patch, headers={"If-Match": '"1"'})

        assert (stated.status_code, stated.json()["code"]) == (409, "version_conflict")
        assert stated.json()["current_version"] == 1
        assert (tagged.status_code, tagged.json()["code"]) == (412, "version_conflict")
        assert tagged.json()["current_version"] == 1
        assert (fits.status_code, fits.headers["ETag"]) == (200, '"2"')

    async def test_an_entry_may_depend_on_the_last_seq(self, edge: Edge):
        name = fresh()
        async with edge.client(name) as client:
            at = f"/sessions/{await begun(client, name)}/timeline"
            fits = await client.post(at, json={"entry": 1, "expected_last_seq": 0})
            late = await client.post(at, json={"entry": 2, "expected_last_seq": 0})
            wrong = await client.post(at, json={"entry": 3, "expected_last_seq": -1})
            read = await client.get(at)

        assert (fits.status_code, fits.json()["seq"]) == (201, 1)
        assert (late.status_code, late.json()["code"]) == (409, "version_conflict")
        assert late.json()["current_last_seq"] == late.json()["current_version"] == 1
        assert (wrong.status_code, wrong.json()["field"]) == (422, "expected_last_seq")
        assert [e["entry"] for e in read.json()["entries"]] == [1]

    async def test_a_turn_is_taken_once_or_refused_as_a_whole(self, edge: Edge):
        name = fresh()
        body = {"entries": [1, {"n": 2}], "patch": {"tags": ["a"]}}
        async with edge.client(name) as client:
            at = f"/sessions/{await begun(client, name)}"
            once = {"Idempotency-Key": "turn-1", "If-Match": '"1"'}
            taken = await client.post(f"{at}/turns", json=body, headers=once)
            again = await client.post(f"{at}/turns", json=body, headers=once)
            stale = await client.post(
                f"{at}/turns", json=body, headers={"If-Match": '"1"'}
            )
            late = await client.post(
                f"{at}/turns", json=body | {"expected_last_seq": 1, "turn": "run-7"}
            )
            many = await client.post(f"{at}/turns", json={"entries": [0] * 257})
            empty = await client.post(f"{at}/turns", json={})
            named = await client.post(
                f"{at}/turns", json={"entries": [3], "turn": "run-7"}
            )
            read = await client.get(f"{at}/timeline")
            session = await client.get(at)

        assert (taken.status_code, taken.headers["ETag"]) == (201, '"2"')
        told = taken.json()
        assert (told["version"], told["seqs"]) == (2, [1, 2])
        assert again.json() == told
        assert (stale.status_code, stale.json()["current_version"]) == (412, 2)
        assert (late.status_code, late.json()["current_last_seq"]) == (409, 2)
        assert (many.status_code, many.json()["code"]) == (413, "too_large")
        assert (empty.status_code, empty.json()["field"]) == (422, "entries")
        assert (named.json()["turn"], named.json()["version"]) == ("run-7", 3)
        entries = [(e["entry"], e["turn"]) for e in read.json()["entries"]]
        assert entries == [(1, told["turn"]), ({"n": 2}, told["turn"]), (3, "run-7")]
        assert session.json()["tags"] == ["a"]

    async def test_two_words_on_the_version_must_be_the_same(self, edge: Edge):
        name = fresh()
        async with edge.client(name) as client:
            at = f"/sessions/{await begun(client, name)}"
            body = {"patch": {"tags": ["a"]}, "expected_version": 1}
            both = await client.patch(at, json=body, headers={"If-Match": '"2"'})
            agree = await client.patch(at, json=body, headers={"If-Match": 'W/"1"'})

        assert (both.status_code, both.json()["field"]) == (422, "expected_version")
        assert agree.status_code == 200

    async def test_what_is_known_is_not_sent_again(self, edge: Edge):
        name = fresh()
        async with edge.client(name) as client:
            at = f"/sessions/{await begun(client, name)}"
            known = await client.get(at, headers={"If-None-Match": '"9", "1"'})
            news = await client.get(at, headers={"If-None-Match": '"9"'})

        assert (known.status_code, known.content) == (304, b"")
        assert known.headers["ETag"] == '"1"'
        assert known.headers["Cache-Control"] == "no-store"
        assert news.status_code == 200

    @pytest.mark.parametrize("tag", ["7", '"a"', '"1", "2"', '"-1"', '"01"', ""])
    async def test_a_tag_that_is_no_version_is_refused(self, edge: Edge, tag: str):
        async with edge.client(fresh()) as client:
            answer = await client.patch(
                f"/sessions/{uuid.uuid4()}",
                json={"patch": {}},
                headers={"If-Match": tag},
            )

        assert answer.status_code == 400
        assert answer.json()["field"] == "If-Match"


class TestRepetitions:
    """
    What a key makes of a write that is asked for again.
    """

    async def test_a_repetition_gets_the_first_answer(self, edge: Edge):
        name, key = fresh(), {"Idempotency-Key": "once"}
        async with edge.client(name, **key) as client:
            first, again = [
                await client.post("/sessions", json={"user_id": name}) for _ in "12"
            ]

        assert (first.status_code, again.status_code) == (201, 201)
        assert first.json() == again.json()
        assert again.headers["Location"] == first.headers["Location"]
        assert again.headers["Idempotency-Replayed"] == "true"
        assert "Idempotency-Replayed" not in first.headers

    async def test_a_repetition_at_another_edge_takes_effect_once(self, house, edge):
        """
        Fifty at once over two edges: one entry, and every answer names it.
        """
        name = fresh()
        async with house.edge() as other, edge.client(name) as client:
            at = f"/sessions/{await begun(client, name)}/timeline"
            headers = {"Idempotency-Key": "fifty"}
            async with other.client(name) as elsewhere:
                answers = await asyncio.gather(
                    *(
                        one.post(at, json={"entry": "hello"}, headers=headers)
                        for _ in range(25)
                        for one in (client, elsewhere)
                    )
                )
            entries = (await client.get(at)).json()["entries"]

        assert {one.status_code for one in answers} == {201}
        assert len({one.content for one in answers}) == 1
        assert [one["entry"] for one in entries] == ["hello"]

    @pytest.mark.parametrize("where", ["here", "elsewhere"])
    async def test_a_key_is_for_one_request(self, house, edge: Edge, where: str):
        name, headers = fresh(), {"Idempotency-Key": "one"}
        async with house.edge() as other, edge.client(name) as client:
            at = f"/sessions/{await begun(client, name)}"
            first = await client.post(
                f"{at}/timeline", json={"entry": 1}, headers=headers
            )
            chosen = edge if where == "here" else other
            async with chosen.client(name) as again:
                body = await again.post(
                    f"{at}/timeline", json={"entry": 2}, headers=headers
                )
                path = await again.post(f"{at}/resume", headers=headers)

        assert first.status_code == 201
        for refused in (body, path):
            assert (refused.status_code, refused.json()["code"]) == (422, "invalid")

    async def test_keys_of_two_principals_do_not_meet(self, edge: Edge):
        names, key = [fresh(), fresh()], {"Idempotency-Key": "same"}
        made = []
        for name in names:
            async with edge.client(name, **key) as client:
                made.append(await begun(client, name))

        assert made[0] != made[1]

    async def test_a_repetition_after_a_refusal_is_refused_alike(self, edge: Edge):
        name, headers = fresh(), {"Idempotency-Key": "vain"}
        async with edge.client(name) as client:
            at = f"/sessions/{await begun(client, name)}"
            body = {"patch": {"tags": ["a"]}, "expected_version": 2}
            first = await client.patch(at, json=body, headers=headers)
            await client.patch(at, json={"patch": {"tags": ["b"]}})
            again = await client.patch(at, json=body, headers=headers)

        assert (first.status_code, again.status_code) == (409, 409)
        assert again.json()["current_version"] == 1

    async def test_large_answers_are_repeated_at_another_edge(self, house, edge: Edge):
        """
        What no wake-up carries is read from a stream that the other one unlinks.
        """
        name, headers = fresh(), {"Idempotency-Key": "large"}
        patch = {"patch": {"context_summary": {"text": "x" * 20_000}}}
        async with house.edge() as other, edge.client(name) as client:
            at = f"/sessions/{await begun(client, name)}"
            async with other.client(name) as elsewhere:
                answers = await asyncio.gather(
                    *(
                        one.patch(at, json=patch, headers=headers)
                        for one in (client, elsewhere) * 3
                    )
                )

        assert {one.status_code for one in answers} == {200}
        assert {one.json()["version"] for one in answers} == {2}

    @pytest.mark.parametrize("key", ["", "a b", "ü", "x" * 256])
    async def test_a_key_that_is_none_is_refused(self, edge: Edge, key: str):
        async with edge.client(fresh()) as client:
            answer = await client.post(
                "/sessions",
                json={"user_id": "ada"},
                headers={"Idempotency-Key": key.encode("latin-1")},
            )

        assert answer.status_code == 422
        assert "idempotency" in answer.json()["field"].lower()


class TestStrictness:
    """
    What no route takes.
    """

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (b"", 422),
            (b"{", 400),
            (b'{"entry": NaN}', 400),
            (b'{"entry": -Infinity}', 400),
            (b'{"entry": 1e999}', 400),
            (b'{"entry": 1, "entry": 2}', 400),
            (b'{"entry": {"a": 1, "\\u0061": 2}}', 400),
            (b'{"entry": "\xff"}', 400),
            ('{"entry": 1}'.encode("utf-16"), 400),
            (b'\xef\xbb\xbf{"entry": 1}', 400),
            (b'{"entry": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
            (b'{"entry": ' + b"[" * 33 + b"]" * 33 + b"}", 422),
            (b'{"entry": ' + b"9" * 5000 + b"}", 400),
            (b'{"entry": 9007199254740993}', 422),
            (b'{"entry": "\\ud800"}', 422),
            (b'{"entry": {"$set": 1}}', 422),
            (b'{"entry": 1, "author": "eve"}', 422),
            (b'{"entry": 1, "\\ud800": 1}', 422),
            (b"[1]", 422),
            (b"null", 422),
            (b'{"entry": "' + b"x" * 300_000 + b'"}', 413),
        ],
        ids=str,
    )
    async def test_bodies(self, edge: Edge, body: bytes, status: int):
        headers = {"Content-Type": "application/json"}
        async with edge.client(fresh()) as client:
            answer = await client.post(
                f"/sessions/{uuid.uuid4()}/timeline", content=body, headers=headers
            )

        assert answer.status_code == status, answer.text
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["status"] == status

    async def test_depth_32_is_allowed(self, edge: Edge):
        name = fresh()
        entry: object = []
        for _ in range(31):
            entry = [entry]
        async with edge.client(name) as client:
            at = f"/sessions/{await begun(client, name)}/timeline"
            answer = await client.post(at, json={"entry": entry})

        assert answer.status_code == 201, answer.text

    async def test_a_body_without_length_is_cut_at_the_limit(self, edge: Edge):
        """
        The rest of an endless body is never asked for.
        """
        sent = 0

        async def endless():
            nonlocal sent
            while sent < 10_000:
                sent += 1
                yield b"x" * 16_384

        async with edge.client(fresh()) as client:
            answer = await client.post(
                "/sessions",
                content=endless(),
                headers={"Content-Type": "application/json"},
            )

        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert sent < 20

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"Content-Type": "text/plain"}, 415),
            ({"Content-Type": "application/json; charset=utf-16"}, 415),
            ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
            ({"Accept": "text/html"}, 406),
            ({"Everbus-Timeout": "0"}, 422),
            ({"Everbus-Timeout": "61"}, 422),
            ({"Everbus-Timeout": "nan"}, 422),
            ({"Everbus-Durability": "eternal"}, 422),
            ({"X-Large": "x" * 20_000}, 431),
            ({f"X-{n}": "x" for n in range(80)}, 431),
        ],
        ids=lambda value: str(value)[:40],
    )
    async def test_headers(self, edge: Edge, headers: dict[str, str], status: int):
        async with edge.client(fresh()) as client:
            given = {"Content-Type": "application/json"} | headers
            answer = await client.post(
                "/sessions", content=b'{"user_id": "ada"}', headers=given
            )

        assert answer.status_code == status, answer.text
        assert answer.json()["status"] == status

    @pytest.mark.parametrize(
        "field",
        ["version", "tenant", "owner_id", "acl", "id", "session_id", "or_get"],
    )
    async def test_nobody_sets_what_is_not_theirs(self, edge: Edge, field: str):
        name = fresh()
        async with edge.client(name) as client:
            made = await client.post("/sessions", json={"user_id": name, field: "x"})
            at = f"/sessions/{await begun(client, name)}"
            beside = await client.patch(at, json={"patch": {}, field: 9})

        for answer in (made, beside):
            assert (answer.status_code, answer.json()["field"]) == (422, field)

    @pytest.mark.parametrize(
        ("method", "path", "status", "code"),
        [
            ("GET", "/nowhere", 404, "not_found"),
            ("PUT", "/sessions", 405, "invalid"),
            ("POST", "/sessions/", 404, "not_found"),
            ("GET", "/sessions/a%20b", 422, "invalid"),
            ("GET", "/sessions/.hidden", 422, "invalid"),
            ("GET", "/sessions?limt=3", 422, "invalid"),
            ("GET", "/sessions?limit=0", 422, "invalid"),
            ("GET", "/sessions?active_since=2026-01-01T00:00:00", 422, "invalid"),
            ("GET", f"/sessions?text={'x' * 9000}", 414, "too_large"),
            ("DELETE", "/sessions/x/participants/a.b", 422, "invalid"),
        ],
    )
    async def test_paths(
        self, edge: Edge, method: str, path: str, status: int, code: str
    ):
        async with edge.client(fresh()) as client:
            answer = await client.request(method, path)

        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.json()["detail"]

    async def test_a_method_that_is_not_served_is_told_those_that_are(self, edge: Edge):
        async with edge.client(fresh()) as client:
            answer = await client.put("/sessions/x")

        assert answer.headers["Allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH"


class TestCallers:
    """
    Who asks, and what of it is seen.
    """

    @pytest.mark.parametrize(
        "shown",
        [
            "",
            "Bearer",
            "Bearer ",
            "Bearer x",
            "Basic YTpi",
            "Bearer a b",
            "Bearer eyJ.e30.x",
        ],
    )
    async def test_a_bad_token_is_refused_and_not_repeated(self, edge: Edge, shown):
        headers = {"Authorization": shown} if shown else {}
        async with edge.client(**headers) as client:
            answer = await client.get("/sessions")

        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        token = shown.rpartition(" ")[2]
        assert len(token) < 8 or token not in answer.text

    async def test_docs_are_for_everybody(self, edge: Edge):
        async with edge.client() as client:
            page = await client.get("/docs")
            described = await client.get("/openapi.json")

        assert page.status_code == 200
        assert "swagger" in page.text
        assert described.json()["openapi"].startswith("3.")

    async def test_the_request_id_is_kept_if_it_is_sane(self, edge: Edge):
        async with edge.client() as client:
            kept = await client.get("/sessions", headers={"X-Request-Id": "mine-1"})
            made = await client.get("/sessions", headers={"X-Request-Id": "a b\tc"})

        assert kept.headers["X-Request-Id"] == kept.json()["request_id"] == "mine-1"
        assert made.headers["X-Request-Id"] == made.json()["request_id"] != "a b\tc"

    async def test_an_answer_is_for_nobody_else(self, edge: Edge):
        async with edge.client(fresh()) as client:
            answer = await client.get("/sessions")

        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"

    async def test_nobody_begins_a_session_for_somebody_else(self, edge: Edge):
        async with edge.client(fresh()) as client:
            answer = await client.post("/sessions", json={"user_id": "somebody"})

        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_an_answer_that_takes_too_long_is_given_up(edge: Edge):
    """
    The deadline is the command's: what a manager sees later it does not apply.
    """
    name = fresh()
    async with edge.client(name) as client:
        session = await begun(client, name)
        answer = await client.post(
            f"/sessions/{session}/timeline",
            json={"entry": 1},
            headers={"Everbus-Timeout": "0.000001"},
        )
        entries = await client.get(f"/sessions/{session}/timeline")

    assert answer.status_code in (503, 504), answer.text
    assert answer.json()["code"] in ("unavailable", "timeout")
    assert int(answer.headers["Retry-After"]) >= 1
    assert entries.json()["entries"] == []


async def test_numbers_and_text_return_as_they_came(edge: Edge):
    name = fresh()
    entry = {"n": 0.1, "big": 2**53, "text": "ü\u2028\0", "none": None, "deep": [[{}]]}
    async with edge.client(name) as client:
        at = f"/sessions/{await begun(client, name)}/timeline"
        await client.post(at, content=json.dumps({"entry": entry}), headers=JSON)
        read = await client.get(at)

    assert read.json()["entries"][0]["entry"] == entry


JSON = {"Content-Type": "application/json"}
