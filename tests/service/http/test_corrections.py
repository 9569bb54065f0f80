"""Corrections over HTTP: what a walk says, whose it is, what a person is called."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from service.access.keys import Scope, create_key
from service.foundation.settings import Settings
from service.storage.database import migrate, open_database
from tests.service.requests import contents, enrol, identify, problem, verify
from tests.service.server import serving
from tests.service.walkers import walk

Serve = Callable[..., httpx.Client]


@pytest.fixture
def client(serve: Serve) -> httpx.Client:
    return serve()


def enrolled(client: httpx.Client, subject: str, *walks: bytes, **fields: str) -> list[str]:
    answer = enrol(client, subject, *walks, **fields)
    assert answer.status_code == 201, answer.text
    return [item["sequence_id"] for item in answer.json()["sequences"]]


def audited(client: httpx.Client, *actions: str) -> list[tuple[str, str | None, Any]]:
    lines = map(json.loads, client.get("/audit").text.splitlines())
    return [
        (line["action"], line["subject_id"], line["details"])
        for line in lines
        if line["action"] in actions
    ]


def owners(client: httpx.Client) -> dict[str, list[str]]:
    return {
        subject: [item["sequence_id"] for item in found["sequences"]]
        for subject, found in contents(client).items()
        if subject
    }


def test_metadata_are_replaced_whole_and_coverage_and_filters_follow(client: httpx.Client) -> None:
    (first,) = enrolled(client, "anna", walk(1), metadata='{"camera": "north"}')
    assert client.get("/subjects/anna").json()["coverage"]["advice"] == [
        "another_sequence", "name_the_view",
    ]  # fmt: skip
    assert identify(client, walk(1), filter='{"view": "090"}').json()["candidates"] == []
    content = {"metadata": {"view": "090", "condition": "nm"}}
    answer = client.patch(f"/sequences/{first}", json=content)
    assert answer.status_code == 200
    assert answer.json() == client.get(f"/sequences/{first}").json()
    assert answer.json()["metadata"] == content["metadata"]
    covered = client.get("/subjects/anna").json()["coverage"]
    assert (covered["views"], covered["conditions"]) == (["090"], ["nm"])
    assert "name_the_view" not in covered["advice"]
    found = identify(client, walk(1), filter='{"view": "090"}').json()["candidates"]
    assert [item["sequence_id"] for item in found] == [first]
    assert identify(client, walk(1), filter='{"camera": "north"}').json()["candidates"] == []
    assert client.patch(f"/sequences/{first}", json=content).json() == answer.json()
    assert audited(client, "edit_sequence", "move_sequence") == [("edit_sequence", "anna", {})] * 2


def test_a_moved_walk_is_found_as_its_new_subject_and_counts_for_both(
    client: httpx.Client,
) -> None:
    first, second = enrolled(client, "anna", walk(1), walk(2))
    (other,) = enrolled(client, "bert", walk(3))
    answer = client.patch(
        f"/sequences/{second}", json={"subject_id": "bert", "metadata": {"view": "000"}}
    )
    assert (answer.json()["subject_id"], answer.json()["metadata"]) == ("bert", {"view": "000"})
    assert owners(client) == {"anna": [first], "bert": [second, other]}
    best = identify(client, walk(2)).json()["candidates"][0]
    assert (best["subject_id"], best["sequence_id"]) == ("bert", second)
    assert verify(client, "anna", walk(2)).json()["sequence_id"] == first
    assert audited(client, "edit_sequence", "move_sequence") == [
        ("edit_sequence", "bert", {}),
        ("move_sequence", "anna", {"subject": "former"}),
        ("move_sequence", "bert", {"subject": "present"}),
    ]


def test_a_subject_goes_with_its_last_walk_and_is_forgotten_in_the_record(
    client: httpx.Client,
) -> None:
    (only,) = enrolled(client, "anna", walk(1))
    (other,) = enrolled(client, "bert", walk(2))
    client.patch("/subjects/anna", json={"display_name": "Anna"})
    assert client.patch(f"/sequences/{only}", json={"subject_id": "bert"}).status_code == 200
    assert owners(client) == {"bert": [only, other]}
    problem(client.get("/subjects/anna"), 404)
    assert client.get("/galleries/default").json()["subjects"] == 1
    assert "anna" not in client.get("/audit").text
    (again,) = enrolled(client, "anna", walk(5))
    assert client.get("/subjects/anna").json()["display_name"] is None
    assert owners(client) == {"anna": [again], "bert": [only, other]}


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("Anna Ångström", "Anna Ångström"),
        ("Ame\u0301lie", "Am\u00e9lie"),
        ("李小龍", "李小龍"),
        ("محمد بن سلمان", "محمد بن سلمان"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👩‍👩‍👧 & <b>", "👩‍👩‍👧 & <b>"),
        ("x" * 200, "x" * 200),
        (None, None),
    ],
)
def test_a_display_name_may_be_of_any_script(
    shared: httpx.Client, sent: str | None, kept: str | None
) -> None:
    enrolled(shared, "named", walk(1))
    answer = shared.patch("/subjects/named", json={"display_name": sent})
    assert (answer.status_code, answer.json()["display_name"]) == (200, kept)
    (listed,) = [
        item for item in shared.get("/subjects").json()["items"] if item["subject_id"] == "named"
    ]
    assert listed == answer.json()
    assert shared.get("/subjects/named").json()["display_name"] == kept
    shown = identify(shared, walk(1), include="metadata").json()["candidates"]
    assert [item["display_name"] for item in shown if item["subject_id"] == "named"] == [kept]


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        None,
        {"display_name": ""},
        {"display_name": "   "},
        {"display_name": "x" * 201},
        {"display_name": "\u0958" * 101},  # twice as long in NFC
        {"display_name": "two\nlines"},
        {"display_name": "two\u2028lines"},
        {"display_name": "nothing\u0000"},
        {"display_name": "turned \u202eround"},
        {"display_name": "\ufeffAnna"},
        {"display_name": "half \ud800"},
        {"display_name": 7},
        {"display_name": ["Anna"]},
        {"subject_id": None},
        {"subject_id": "a/b"},
        {"subject_id": ".."},
        {"subject_id": "a" * 129},
        {"subject_id": 5},
        {"merge_into": None},
        {"merge_into": "a/b"},
        {"merge_into": "bert", "subject_id": "carl"},
        {"metadata": None},
        {"metadata": {"view": ["000"]}},
        {"metadata": {f"f{number}": "x" * 1000 for number in range(20)}},
        {"display_name": "Anna", "colour": "red"},
    ],
)
def test_what_is_no_correction_of_a_subject_is_refused_and_changes_nothing(
    shared: httpx.Client, content: Any
) -> None:
    enrolled(shared, "refused", walk(1))
    before = contents(shared)
    answer = shared.patch(
        "/subjects/refused",
        content=json.dumps(content),
        headers={"Content-Type": "application/json"},
    )
    assert problem(answer, 422)["type"] == "/problems/invalid-field"
    assert contents(shared) == before


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"metadata": None},
        {"metadata": "view"},
        {"metadata": {"view": ["000"]}},
        {"metadata": {"view": {"deep": 1}}},
        {"metadata": {"view": "x" * 1025}},
        {"metadata": {"view": "\u0000"}},
        {"metadata": {"": 1}},
        {"metadata": {"view": float("nan")}},
        {"metadata": {"view": 1e300}},
        {"metadata": {f"f{number}": 1 for number in range(65)}},
        {"metadata": {f"f{number}": "x" * 1000 for number in range(20)}},
        {"subject_id": None},
        {"subject_id": ""},
        {"gallery": "lab"},
    ],
)
def test_what_is_no_correction_of_a_walk_is_refused_and_changes_nothing(
    shared: httpx.Client, content: Any
) -> None:
    (sequence,) = enrolled(shared, "refused", walk(1))
    before = contents(shared)
    answer = shared.patch(
        f"/sequences/{sequence}",
        content=json.dumps(content),
        headers={"Content-Type": "application/json"},
    )
    assert problem(answer, 422)["type"] == "/problems/invalid-field"
    assert contents(shared) == before


def test_who_is_not_there_or_in_the_way_is_named_with_what_to_do(client: httpx.Client) -> None:
    (first,) = enrolled(client, "anna", walk(1))
    enrolled(client, "bert", walk(1), walk(2))
    client.post("/galleries", json={"name": "lab"})
    enrolled(client, "carl", walk(3), gallery="lab")
    before = contents(client)
    answer = client.patch(f"/sequences/{first}", json={"subject_id": "carl"})  # of another gallery
    assert "PATCH /subjects" in problem(answer, 404)["detail"]
    refused = [
        (client.patch("/sequences/none", json={"metadata": {}}), 404, "sequence-not-found"),
        (client.patch(f"/sequences/{first}", json={"subject_id": "bert"}), 409, "same-walk"),
        (client.patch("/subjects/none", json={"display_name": "x"}), 404, "subject-not-found"),
        (client.patch("/subjects/anna", json={"subject_id": "bert"}), 409, "subject-exists"),
        (
            client.patch("/subjects/anna?gallery=none", json={"display_name": "x"}),
            404,
            "gallery-not-found",
        ),
        (client.patch("/subjects/anna", json={"merge_into": "none"}), 404, "subject-not-found"),
        (client.patch("/subjects/none", json={"merge_into": "anna"}), 404, "subject-not-found"),
        (client.patch("/subjects/anna", json={"merge_into": "anna"}), 409, "same-subject"),
    ]
    for answer, status, slug in refused:
        assert problem(answer, status)["type"] == f"/problems/{slug}"
    assert contents(client) == before


def test_a_renamed_subject_keeps_everything_but_its_id(client: httpx.Client) -> None:
    ids = enrolled(client, "anna", walk(1), walk(2), metadata='{"view": "090"}')
    before = client.get("/subjects/anna").json()
    answer = client.patch("/subjects/anna", json={"subject_id": "a-1", "display_name": "Anna"})
    assert answer.json() == {
        "subject_id": "a-1", "display_name": "Anna", "metadata": {}, "gallery": "default",
        "sequences": 2, "created_at": before["created_at"],
    }  # fmt: skip
    assert owners(client) == {"a-1": ids}
    (best,) = identify(client, walk(2), include="metadata").json()["candidates"]
    assert (best["subject_id"], best["display_name"]) == ("a-1", "Anna")
    assert audited(client, "edit_subject") == [
        ("edit_subject", "a-1", {"changed": ["display_name", "subject_id"]})
    ]
    assert "anna" not in client.get("/audit").text
    same = client.patch("/subjects/a-1", json={"subject_id": "a-1"})
    assert same.json() == answer.json()


def test_merged_subjects_have_all_walks_and_the_very_same_one_once(client: httpx.Client) -> None:
    copy, own = enrolled(client, "anna", walk(1), walk(2))
    (kept,) = enrolled(client, "bert", walk(1))
    client.patch("/subjects/anna", json={"display_name": "Anna B."})
    answer = client.patch("/subjects/anna", json={"merge_into": "bert"})
    assert answer.status_code == 200
    assert answer.json() == client.get("/subjects").json()["items"][0]
    assert (answer.json()["sequences"], answer.json()["display_name"]) == (2, "Anna B.")
    assert owners(client) == {"bert": [own, kept]}
    problem(client.get(f"/sequences/{copy}"), 404)
    (best,) = identify(client, walk(2)).json()["candidates"]
    assert (best["subject_id"], best["sequence_id"]) == ("bert", own)
    assert audited(client, "merge_subjects") == [
        ("merge_subjects", "bert", {"sequences": 2, "same": 1})
    ]
    enrolled(client, "carl", walk(4))
    client.patch("/subjects/carl", json={"display_name": "Carl"})
    merged = client.patch("/subjects/carl", json={"merge_into": "bert"}).json()
    assert merged["display_name"] == "Anna B."  # who remains keeps the name


def test_a_merge_describes_who_remains(client: httpx.Client) -> None:
    enrolled(client, "anna", walk(1))
    enrolled(client, "bert", walk(2))
    client.patch("/subjects/anna", json={"metadata": {"team": "A"}})
    content = {"merge_into": "bert", "display_name": "Bert"}
    answer = client.patch("/subjects/anna", json=content).json()
    assert (answer["subject_id"], answer["display_name"]) == ("bert", "Bert")
    assert answer["metadata"] == {"team": "A"}
    enrolled(client, "carl", walk(3))
    client.patch("/subjects/carl", json={"metadata": {"team": "C"}, "display_name": "Carl"})
    nothing: dict[str, Any] = {"merge_into": "bert", "display_name": None, "metadata": {}}
    answer = client.patch("/subjects/carl", json=nothing).json()
    assert (answer["display_name"], answer["metadata"]) == (None, {})
    assert audited(client, "merge_subjects", "edit_subject")[-2:] == [
        ("merge_subjects", "bert", {"sequences": 1, "same": 0}),
        ("edit_subject", "bert", {"changed": ["display_name", "metadata"]}),
    ]
    problem(client.patch("/subjects/carl", json=nothing), 404)


def test_a_subject_has_metadata_of_its_own_that_goes_over_its_walk_s(client: httpx.Client) -> None:
    metadata = '{"view": "090", "team": "none"}'
    (walk_id,) = enrolled(client, "anna", walk(1), metadata=metadata)
    assert client.get("/subjects/anna").json()["metadata"] == {}
    answer = client.patch("/subjects/anna", json={"metadata": {"team": "A", "age": 40}})
    assert answer.json()["metadata"] == {"team": "A", "age": 40}
    assert answer.json() == client.get("/subjects").json()["items"][0]
    assert client.get("/subjects/anna").json()["metadata"] == {"team": "A", "age": 40}
    assert client.get(f"/sequences/{walk_id}").json()["metadata"] == json.loads(metadata)
    both = {"view": "090", "team": "A", "age": 40}
    (best,) = identify(client, walk(1), include="metadata").json()["candidates"]
    assert best["metadata"] == both
    assert verify(client, "anna", walk(1), include="metadata").json()["metadata"] == both
    assert identify(client, walk(1), filter='{"team": "A"}').json()["candidates"] == []
    assert audited(client, "edit_subject") == [("edit_subject", "anna", {"changed": ["metadata"]})]
    assert client.patch("/subjects/anna", json={"metadata": {}}).json()["metadata"] == {}
    (best,) = identify(client, walk(1), include="metadata").json()["candidates"]
    assert best["metadata"] == json.loads(metadata)


def test_nothing_but_metadata_can_be_included(shared: httpx.Client) -> None:
    enrolled(shared, "included", walk(1))
    for include in ("", "display_name", "metadata,parts", "true"):
        for answer in (
            identify(shared, walk(1), include=include),
            verify(shared, "included", walk(1), include=include),
        ):
            assert problem(answer, 422)["errors"][0]["where"] == "include"


def test_of_corrections_that_contradict_each_other_one_is_made(client: httpx.Client) -> None:
    enrolled(client, "target", walk(9))
    for person in range(6):
        enrolled(client, f"s{person}", walk(person))

    def rename(person: int) -> int:
        with httpx.Client(base_url=client.base_url, timeout=30) as own:
            content = {"subject_id": "new"}
            return own.patch(f"/subjects/s{person}", json=content).status_code

    with ThreadPoolExecutor(6) as threads:
        statuses = sorted(threads.map(rename, range(6)))
    assert statuses == [200] + [409] * 5
    found = owners(client)
    assert len(found) == 7
    assert "new" in found
    assert all(len(walks) == 1 for walks in found.values())


def test_names_are_shown_when_they_are_asked_for_only(client: httpx.Client) -> None:
    enrolled(client, "anna", walk(1))
    enrolled(client, "bert", walk(2))
    client.patch("/subjects/anna", json={"display_name": "Anna"})
    plain = identify(client, walk(1)).json()["candidates"]
    assert not any({"display_name", "metadata"} & set(item) for item in plain)
    named = identify(client, walk(1), include="metadata").json()["candidates"]
    assert {item["subject_id"]: item["display_name"] for item in named} == {
        "anna": "Anna", "bert": None,
    }  # fmt: skip
    assert "parts" not in named[0]
    assert "display_name" not in verify(client, "anna", walk(1)).json()
    assert verify(client, "anna", walk(1), include="metadata").json()["display_name"] == "Anna"
    assert verify(client, "bert", walk(1), include="metadata").json()["display_name"] is None
    assert "Anna" not in client.get("/audit").text


def test_corrections_take_the_scope_that_erasures_take(settings: Settings) -> None:
    settings.data_dir.mkdir()
    engine = open_database(settings.resolved_database_url)
    migrate(engine)
    keys = {
        scope: create_key(engine, [scope], scope.value)[1]
        for scope in (Scope.ADMIN, Scope.ENROLL, Scope.IDENTIFY)
    }
    engine.dispose()
    with serving(settings) as client:
        client.headers["Authorization"] = f"Bearer {keys[Scope.ADMIN]}"
        (sequence,) = enrolled(client, "anna", walk(1))
        enrolled(client, "bert", walk(2))
        calls: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("PATCH", f"/sequences/{sequence}", {"metadata": {}}),
            ("PATCH", "/subjects/anna", {"display_name": "A"}),
            ("PATCH", "/subjects/anna", {"merge_into": "bert"}),
        )
        for scope in (Scope.ENROLL, Scope.IDENTIFY, Scope.ADMIN):
            client.headers["Authorization"] = f"Bearer {keys[scope]}"
            statuses = {client.request(how, to, json=body).status_code for how, to, body in calls}
            assert statuses == ({200} if scope is Scope.ADMIN else {403})


def test_every_process_follows_corrections_at_its_next_search(serve: Serve) -> None:
    one, two = serve(), serve()
    first, second = enrolled(one, "anna", walk(1), walk(2))
    (other,) = enrolled(one, "bert", walk(3))

    def seen() -> list[tuple[str, str, str | None]]:
        found = [
            [
                (item["subject_id"], item["sequence_id"], item["display_name"])
                for item in identify(client, walk(2), include="metadata").json()["candidates"]
            ]
            for client in (one, two)
        ]
        assert found[0] == found[1]
        return found[0]

    assert seen()[0] == ("anna", second, None)
    two.patch(f"/sequences/{second}", json={"subject_id": "bert"})
    assert seen()[0] == ("bert", second, None)
    one.patch("/subjects/bert", json={"subject_id": "b-2", "display_name": "Bert"})
    assert seen()[0] == ("b-2", second, "Bert")
    two.patch("/subjects/b-2", json={"merge_into": "anna"})
    assert seen() == [("anna", second, "Bert")]
    assert owners(one) == owners(two) == {"anna": [first, second, other]}
