"""Answers and problem details of lambda_pg.http_api, and what becomes of a handler's errors."""

import base64
import json
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from lambda_pg import (
    CheckoutTimeoutError,
    CommitOutcomeUnknownError,
    ConfigurationError,
    CredentialsError,
    DeadlineExceededError,
)
from lambda_pg.http_api import (
    Answer,
    Problem,
    Request,
    Rules,
    StatementFailedError,
    answer_to,
    etag,
    http_handler,
)
from lambda_pg.http_api.problems import KINDS

from tests.support.canary import CANARY, assert_nowhere
from tests.support.http_events import SUBJECT, http_event


def body_of(answer: Answer) -> Any:
    """Parse an answer's body."""
    return json.loads(answer.content)


def test_an_answer_is_json() -> None:
    """UUIDs, dates and times are as PostgreSQL gives them; text is not escaped."""
    body = {
        "id": UUID(SUBJECT),
        "at": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        "on": date(2026, 1, 2),
        "clock": time(1, 2),
        "name": "Zoë",
        "none": None,
    }
    assert Answer(201, body, {"Location": "/notes/1"}, version=7).response() == {
        "statusCode": 201,
        "headers": {"Content-Type": "application/json", "ETag": '"7"', "Location": "/notes/1"},
        "body": f'{{"id": "{SUBJECT}", "at": "2026-01-02T03:04:05.000006+00:00", "on": '
        '"2026-01-02", "clock": "01:02:00", "name": "Zoë", "none": null}',
        "isBase64Encoded": False,
    }


def test_an_answer_of_bytes_is_sent_unchanged() -> None:
    """So a stored answer is replayed as it was, with its headers."""
    first = Answer(201, {"a": "é"}, {"Location": "/1"}, version=1)
    again = Answer(first.status, first.content, first.headers)
    assert again.response() == first.response()


@pytest.mark.parametrize("value", [float("nan"), Decimal(1), {1, 2}, object()])
def test_what_json_has_no_type_for_is_a_defect(value: object) -> None:
    """It never becomes a text that looks right."""
    with pytest.raises((TypeError, ValueError)):
        Answer(200, {"a": value}).content  # noqa: B018 - a property that encodes


def test_an_answer_without_a_body_has_no_type() -> None:
    """As 204, and 304, which names the version that the client has."""
    assert Answer(204).response()["headers"] == {}
    assert Answer.not_modified(7).response() == {
        "statusCode": 304,
        "headers": {"ETag": '"7"'},
        "body": "",
        "isBase64Encoded": False,
    }
    assert etag(7) == '"7"'


def test_a_problem_is_an_answer_in_problem_details() -> None:
    """With the members of RFC 9457, and errors for fields."""
    errors = [{"field": "name", "detail": "must have 2 to 50 characters"}]
    answer = Problem("invalid-fields", "The name is too short.", errors=errors).answer("request-1")
    assert answer.status == 422
    assert answer.headers == {"Content-Type": "application/problem+json"}
    assert body_of(answer) == {
        "type": "docs/problems.md#invalid-fields",
        "title": "Fields are not valid",
        "status": 422,
        "detail": "The name is too short.",
        "instance": "request-1",
        "errors": errors,
    }


def test_a_function_has_problems_that_the_package_does_not_know() -> None:
    """It says their status and their title."""
    problem = Problem("too-late", "It is over.", status=410, title="Gone", headers={"X-A": "b"})
    answer = problem.answer("1")
    assert (answer.status, body_of(answer)["title"]) == (410, "Gone")
    assert answer.headers == {"X-A": "b", "Content-Type": "application/problem+json"}
    assert "errors" not in body_of(answer)
    with pytest.raises(KeyError):
        Problem("too-late", "It is over.")


def test_a_stage_names_the_page_of_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each type is a section of it."""
    rules = Rules(problem_types="https://docs.test/problems")
    monkeypatch.setattr("lambda_pg.http_api.problems.RULES", rules)
    answer = Problem("not-found", "There is no such note.").answer("1")
    assert body_of(answer)["type"] == "https://docs.test/problems#not-found"


@pytest.mark.parametrize("name", KINDS)
def test_every_problem_is_a_refusal(name: str) -> None:
    """A client's, or one that it may retry."""
    assert 400 <= KINDS[name].status < 500 or KINDS[name].status == 503


OUTAGES: Mapping[str, tuple[Exception, str, str]] = {
    "full": (CheckoutTimeoutError(CANARY, retry_after=2.1), "database-unavailable", "3"),
    "login": (CredentialsError(CANARY, retry_after=0.2), "database-unavailable", "1"),
    "deadline": (DeadlineExceededError(CANARY), "database-unavailable", "1"),
    "running": (DeadlineExceededError(CANARY, may_have_run=True), "outcome-unknown", "1"),
    "commit": (CommitOutcomeUnknownError(CANARY, xid="1"), "outcome-unknown", "1"),
}


@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage_is_503_without_its_reason(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The reason names hosts and users: it goes to the log, where the request's id finds it."""
    error, expected, seconds = OUTAGES[name]
    with caplog.at_level(logging.WARNING, "lambda_pg"):
        answer = answer_to(error, "request-1")
    assert (answer.status, answer.headers["Retry-After"]) == (503, seconds)
    assert body_of(answer)["type"].endswith(f"#{expected}")
    assert CANARY not in str(answer)
    assert caplog.messages == [f"request request-1: {CANARY}"]


def test_a_problem_is_answered() -> None:
    """Whatever raised it."""
    assert answer_to(Problem("not-found", "None."), "1") == Problem("not-found", "None.").answer(
        "1"
    )


@pytest.mark.parametrize("error", [KeyError("a"), ConfigurationError(["a"]), RuntimeError("a")])
def test_a_defect_fails_the_invocation(error: Exception) -> None:
    """An answer would hide it, and a deployment with it would go on."""
    with pytest.raises(type(error)) as seen:
        answer_to(error, "1")
    assert seen.value is error


def test_an_sql_error_fails_the_invocation_without_its_values() -> None:
    """Lambda logs what a handler raises."""
    error = psycopg.errors.UniqueViolation(f"duplicate key\nDETAIL:  Key (name)=({CANARY}) exists.")
    with pytest.raises(StatementFailedError, match=r"^UniqueViolation, SQLSTATE 23505$") as seen:
        answer_to(error, "1")
    assert_nowhere(seen.value)


def created(request: Request) -> Answer:
    """Answer as a function does."""
    return Answer(201, request.json())


def read(request: Request) -> Answer:
    """Answer as another one does."""
    return Answer(200, {"id": request.uuid("id")})


def test_a_handler_serves_methods() -> None:
    """Those of its arguments; others are 405, with what is allowed."""
    handler = http_handler(POST=created, GET=read)
    assert handler(http_event(body="[1]"), None)["body"] == "[1]"
    refused = handler(http_event("ANY /notes") | of_method("DELETE"), None)
    assert (refused["statusCode"], refused["headers"]["Allow"]) == (405, "GET, POST")
    assert json.loads(refused["body"])["instance"] == "request-1"


def of_method(method: str) -> dict[str, Any]:
    """Give the part of an event that has its method."""
    return {"requestContext": {"requestId": "request-1", "http": {"method": method}}}


def test_a_handler_serves_routes() -> None:
    """A method of one path is not one of another."""
    handler = http_handler({"POST /notes": created, "GET /notes/{id}": read})
    one = http_event("GET /notes/{id}", parameters={"id": SUBJECT})
    assert json.loads(handler(one, None)["body"]) == {"id": SUBJECT}
    assert handler(http_event(body="1"), None)["statusCode"] == 201
    behind = handler(http_event("ANY /notes/{id}") | of_method("POST"), None)
    assert (behind["statusCode"], behind["headers"]["Allow"]) == (405, "GET")


def test_a_handler_answers_what_a_request_is_refused_for() -> None:
    """Also before there is a request."""
    handler = http_handler(POST=created)
    large = handler(http_event(body="a" * 70_000), None)
    assert (large["statusCode"], json.loads(large["body"])["instance"]) == (413, "request-1")
    assert handler(http_event(body="{"), None)["statusCode"] == 400


@pytest.mark.parametrize("raised", [KeyError("a"), psycopg.ProgrammingError("a")])
def test_a_handler_fails_for_a_defect(raised: Exception) -> None:
    """As without the package."""

    def fail(_: Request) -> Answer:
        raise raised

    with pytest.raises((KeyError, StatementFailedError)):
        http_handler(POST=fail)(http_event(), None)


@pytest.mark.parametrize(
    ("environ", "rules"),
    [
        ({}, Rules()),
        ({"LAMBDA_PG_API_MAX_BODY": "1"}, Rules(max_body=1)),
        ({"LAMBDA_PG_API_REQUIRE_IDEMPOTENCY_KEY": "1"}, Rules(require_idempotency_key=True)),
        ({"LAMBDA_PG_API_REQUIRE_IF_MATCH": "1"}, Rules(require_if_match=True)),
        ({"LAMBDA_PG_API_PROBLEM_TYPES": "https://a.test"}, Rules(problem_types="https://a.test")),
    ],
)
def test_rules_come_from_the_environment(environ: dict[str, str], rules: Rules) -> None:
    """A stage sets what differs from the default."""
    assert Rules.from_env(environ) == rules


@pytest.mark.parametrize("size", ["", "0", "-1", "64 KB", "1e3", "٣", "1.5"])
def test_a_size_that_is_none_is_a_configuration_error(size: str) -> None:
    """It names the variable, the value and what it must be."""
    with pytest.raises(ConfigurationError, match=r"LAMBDA_PG_API_MAX_BODY is .*; must be"):
        Rules.from_env({"LAMBDA_PG_API_MAX_BODY": size})


CALLS: tuple[Callable[[], object], ...] = (
    lambda: Request.of(http_event(body="a" * 70_000)),
    lambda: Request.of(http_event(body="{", headers={"content-type": CANARY})).json(),
    lambda: Request.of(http_event(body=f'{{"{CANARY}')).json(),
    lambda: Request.of(http_event(body=f'{{"{CANARY}": 1, "{CANARY}": 1}}')).json(),
    lambda: Request.of(http_event(headers={"idempotency-key": f"é{CANARY}"})).idempotency_key,
    lambda: Request.of(http_event(headers={"if-match": CANARY})).expected_versions(),
    lambda: Request.of(http_event(claims={"sub": CANARY})).claims,
    lambda: Request.of(http_event(parameters={"id": CANARY})).uuid("id"),
)


@pytest.mark.parametrize("call", CALLS, ids=range(len(CALLS)))
def test_a_problem_repeats_nothing_of_the_request(call: Callable[[], object]) -> None:
    """A page that shows it shows no script of another one, and a log no value."""
    with pytest.raises(Problem) as seen:
        call()
    assert_nowhere(seen.value)
    assert CANARY not in str(seen.value.answer("1"))


def test_a_body_that_is_no_text_is_encoded() -> None:
    """API Gateway decodes it: the client gets the same bytes."""
    response = Answer(200, b"\xff\x00", {"Content-Type": "image/png"}).response()
    assert response["isBase64Encoded"]
    assert base64.b64decode(response["body"]) == b"\xff\x00"
