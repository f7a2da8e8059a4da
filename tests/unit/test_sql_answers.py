"""Answers of `/sql`: sizes, compression, browsers, error objects."""

import base64
import gzip
import json
import sys
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lambda_pg import (
    CheckoutTimeoutError,
    CommitOutcomeUnknownError,
    DatabaseUnavailableError,
    DeadlineExceededError,
)
from lambda_pg.text import CopyRefusedError, TooLargeError

from lambda_pg_cdk.functions.sql.sql_http.answers import (
    PAYS,
    accepts_gzip,
    add_cors,
    cors,
    packed,
    preflight,
    respond,
    size_in_json,
)
from lambda_pg_cdk.functions.sql.sql_http.errors import RequestError, error_object, failure_of
from lambda_pg_cdk.functions.sql.sql_http.keys import KeysUnavailableError

LARGE = 5_000_000


@given(st.text() | st.text(st.characters(max_codepoint=127)))
def test_the_size_of_an_answer_as_it_leaves(text: str) -> None:
    """Lambda writes it as a string of JSON; before 3.12 its runtime client escapes more."""
    body = json.dumps({"a": text}, ensure_ascii=False)
    left = json.dumps(body, ensure_ascii=sys.version_info < (3, 12)).encode()
    assert size_in_json(body) == len(left) - len('""')


def test_an_answer_over_the_limit_as_it_leaves() -> None:
    """Its quotes count twice. The statements are committed by then, and the message says so."""
    body = '"' * 100
    assert packed(respond(200, body, {}), accepted=False, max_bytes=200)["body"] == body
    with pytest.raises(RequestError, match="committed") as error:
        packed(respond(200, body, {}), accepted=False, max_bytes=199)
    assert (error.value.status, error.value.code) == (507, "54000")


def test_compression_where_it_pays() -> None:
    """A large answer leaves as gzip in base64, and counts as such."""
    body = '["abc"]' * PAYS
    response = packed(respond(200, body, {}), accepted=True, max_bytes=PAYS)
    add_cors(response, {"Vary": "Origin"})
    assert response["isBase64Encoded"]
    assert response["headers"]["Content-Encoding"] == "gzip"
    assert response["headers"]["Vary"] == "Origin, Accept-Encoding"
    assert gzip.decompress(base64.b64decode(response["body"])).decode() == body


@pytest.mark.parametrize(
    ("body", "accepted"),
    [
        ("a" * (PAYS - 1), True),
        ("a" * PAYS, False),
        (base64.b64encode(bytes(each * 7919 % 251 for each in range(PAYS))).decode(), False),
    ],
)
def test_an_answer_that_stays_plain(body: str, accepted: bool) -> None:
    """A short one does, and one for a client that does not accept gzip."""
    response = packed(respond(200, body, {}), accepted=accepted, max_bytes=LARGE)
    assert response["body"] == body
    assert "Content-Encoding" not in response["headers"]


def test_a_limit_above_what_lambda_returns() -> None:
    """A stage may allow more than 6 MB, which then leave only compressed."""
    body = "a" * 2 * LARGE
    assert packed(respond(200, body, {}), accepted=True, max_bytes=4 * LARGE)["isBase64Encoded"]
    with pytest.raises(RequestError, match="at most 6000000 are allowed"):
        packed(respond(200, body, {}), accepted=False, max_bytes=4 * LARGE)


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True),
        ("br;q=1.0, GZIP;q=0.8", True),
        ("*", True),
        ("", False),
        ("br, deflate", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("gzip;q=0.001", True),
        ("gzip;q=1.0", True),
    ],
)
def test_what_a_client_accepts(header: str, accepted: bool) -> None:
    """A weight of 0 means no."""
    assert accepts_gzip(header) is accepted


@pytest.mark.parametrize(
    ("origin", "origins", "headers"),
    [
        (None, {"https://a.dev"}, {}),
        ("https://a.dev", set(), {}),
        ("https://b.dev", {"https://a.dev"}, {"Vary": "Origin"}),
        (
            "https://A.dev",
            {"https://a.dev"},
            {"Access-Control-Allow-Origin": "https://A.dev", "Vary": "Origin"},
        ),
        ("https://b.dev", {"*"}, {"Access-Control-Allow-Origin": "*"}),
    ],
)
def test_origins_of_browsers(
    origin: str | None, origins: set[str], headers: dict[str, str]
) -> None:
    """None is allowed without a setting; an allowed one is named, others get no header."""
    assert cors(origin, origins) == headers


def test_a_preflight_names_what_may_be_sent() -> None:
    """Methods and headers of the protocol, for a day."""
    response = preflight({"Vary": "Origin"})
    headers = response["headers"]
    assert (response["statusCode"], headers["Allow"]) == (200, "OPTIONS, POST")
    assert headers["Access-Control-Allow-Headers"].split(", ") == [
        "Content-Type",
        "Authorization",
        "Neon-Connection-String",
        "Neon-Raw-Text-Output",
        "Neon-Array-Mode",
        "Neon-Batch-Isolation-Level",
        "Neon-Batch-Read-Only",
        "Neon-Batch-Deferrable",
    ]
    assert headers["Access-Control-Max-Age"] == "86400"
    assert headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (RequestError("m", "3D000"), 400, "3D000", None),
        (RequestError("m", "54000", 413), 413, "54000", None),
        (TooLargeError("m", committed=False), 507, "54000", None),
        (CopyRefusedError("m"), 400, "0A000", None),
        (CommitOutcomeUnknownError("m"), 400, "08007", None),
        (DeadlineExceededError("m", may_have_run=True), 400, "57014", None),
        (DeadlineExceededError("m"), 503, None, 1),
        (DatabaseUnavailableError("m", retry_after=2.1), 503, None, 3),
        (CheckoutTimeoutError("m", retry_after=0.1), 503, None, 1),
        (KeysUnavailableError("m", 9.5), 503, None, 10),
        (psycopg.errors.UniqueViolation("m"), 400, "23505", None),
        (psycopg.OperationalError("secret"), 503, None, 1),
        (psycopg.InterfaceError("secret"), 500, "XX000", None),
        (ValueError("secret"), 500, "XX000", None),
    ],
)
def test_each_failure_has_its_status(
    error: Exception, status: int, code: str | None, retry_after: int | None
) -> None:
    """The client reads an error object on 400 only; an unexpected error shows nothing."""
    failure = failure_of(error)
    assert (failure.status, failure.body["code"], failure.retry_after) == (
        status,
        code,
        retry_after,
    )
    assert "secret" not in str(failure.body["message"])


def test_an_error_of_any_size_is_cut() -> None:
    """A statement can raise one, and no limit of answers holds for it."""
    body = error_object("m" * 1_000_000, "c")
    assert body["message"] == "m" * 10_000 + "…"


def test_the_fields_of_an_error_object() -> None:
    """What is absent is null."""
    names = "detail hint position internalPosition internalQuery where table column schema"
    absent: dict[str, Any] = dict.fromkeys(names.split())
    absent |= dict.fromkeys(["dataType", "constraint", "file", "line", "routine"])
    assert error_object("m", "c") == {"message": "m", "code": "c", "severity": "ERROR", **absent}
