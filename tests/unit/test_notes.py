"""What the sample function `notes` refuses before the database is asked."""

import json
from types import ModuleType
from typing import Any

import pytest
from lambda_pg.http_api import Answer, Request

from tests.support.context import Context
from tests.support.functions import load_function
from tests.support.http_events import http_event

NOTE = "GET /notes/{id}"


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the function's module; no database is behind it."""
    for name, value in {"PGHOST": "db.test", "PGUSER": "app", "PGPASSWORD": "password"}.items():
        monkeypatch.setenv(name, value)
    return load_function("functions/notes")


def send(notes: ModuleType, event: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
    """Invoke the function; return status, headers and body."""
    answer = notes.handler(event, Context(3))
    return answer["statusCode"], answer["headers"], json.loads(answer["body"])


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["text"]),
        ({"text": ""}, ["text"]),
        ({"text": "x" * 1001}, ["text"]),
        ({"text": "a\0b"}, ["text"]),
        ({"text": 5}, ["text"]),
        ({"text": None}, ["text"]),
        ({"text": "a", "owner": "b"}, ["owner"]),
        ({"txet": "a"}, ["txet", "text"]),
        (["text"], ["text"]),
        ("text", ["text"]),
    ],
)
def test_wrong_fields_are_named(notes: ModuleType, body: object, fields: list[str]) -> None:
    """422 in problem details, with each field that is wrong."""
    status, headers, answer = send(notes, http_event("POST /notes", json.dumps(body)))
    assert (status, headers["Content-Type"]) == (422, "application/problem+json")
    assert [error["field"] for error in answer["errors"]] == fields


def test_an_answer_names_at_most_twenty_fields(notes: ModuleType) -> None:
    """A body of 64 KB holds thousands of names: the answer must not be larger than the request."""
    body = json.dumps({str(number): 1 for number in range(6000)})
    status, _, answer = send(notes, http_event("POST /notes", body))
    assert (status, len(answer["errors"])) == (422, 20)


@pytest.mark.parametrize("text", ["x", "x" * 1000, "\N{GRINNING FACE}" * 1000, " "])
def test_a_text_of_1_to_1000_characters_is_taken(
    notes: ModuleType, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Characters are counted, not bytes, and nothing is stripped."""

    def change(_: object, request: Request, __: object) -> Answer:
        return Answer(201, request.json())

    monkeypatch.setattr(notes, "change_once", change)
    status, _, answer = send(notes, http_event("POST /notes", json.dumps({"text": text})))
    assert (status, answer) == (201, {"text": text})


def test_an_id_that_is_no_uuid_is_422(notes: ModuleType) -> None:
    """And the field is named."""
    status, _, answer = send(notes, http_event(NOTE, parameters={"id": "1"}))
    assert (status, [error["field"] for error in answer["errors"]]) == (422, ["id"])


@pytest.mark.parametrize(
    ("route", "method", "allowed"),
    [("/notes", "GET", "POST"), ("/notes/{id}", "POST", "GET"), ("/notes/{id}", "PATCH", "GET")],
)
def test_another_method_is_405(notes: ModuleType, route: str, method: str, allowed: str) -> None:
    """Allow names the method of the path, not those of the other path."""
    event = http_event(f"{method} {route}", "{}", routeKey=f"ANY {route}")
    status, headers, _ = send(notes, event)
    assert (status, headers["Allow"]) == (405, allowed)


@pytest.mark.parametrize("claims", [{}, {"sub": "somebody"}, {"sub": 5}])
def test_a_token_without_a_subject_is_403(notes: ModuleType, claims: dict[str, object]) -> None:
    """Before anything is read or written."""
    for event in (
        http_event("POST /notes", '{"text": "a"}', claims=claims),
        http_event(NOTE, parameters={"id": "6f2b1c1e-3f0e-4d5a-9f0b-1a2b3c4d5e6f"}, claims=claims),
    ):
        assert send(notes, event)[0] == 403
