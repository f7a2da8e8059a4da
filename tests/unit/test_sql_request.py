"""Requests of `/sql`: headers, connection strings, bodies and parameters."""

import base64
import json
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import IsolationLevel

from lambda_pg_cdk.functions.sql.sql_http.connection_string import is_allowed, parse
from lambda_pg_cdk.functions.sql.sql_http.errors import RequestError
from lambda_pg_cdk.functions.sql.sql_http.parameters import as_texts, read_json
from lambda_pg_cdk.functions.sql.sql_http.request import (
    Modes,
    headers_of,
    read_body,
    read_modes,
    read_request,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def refusal(error: pytest.ExceptionInfo[RequestError]) -> tuple[int, str]:
    """Return status and SQLSTATE."""
    return error.value.status, error.value.code


def status_of(call: Callable[[], object]) -> int:
    """Return the status of a refusal, or 200. Any other error is a failure."""
    try:
        call()
    except RequestError as error:
        return error.status
    return 200


def queries(document: Any, **options: Any) -> Any:
    """Read a body that holds a document."""
    return read_request(json.dumps(document), **{"arrays": False, "max_statements": 10, **options})


@given(TEXT.filter(bool), TEXT, TEXT)
def test_every_name_survives_percent_encoding(user: str, password: str, database: str) -> None:
    """User, password and database are decoded; what they contain does not move the parts."""
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    found = parse(f"postgresql://{login}@Pool.X:5432/{quote(database, safe='')}?a=b@c/d#e")
    assert tuple(found) == (user, password, "pool.x", database)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("postgres://u@h/db", ("u", None, "h", "db")),
        ("POSTGRESQL://u:@h", ("u", "", "h", "")),
        ("postgresql://u:p@[::1]/db", ("u", "p", "[::1]", "db")),
        ("postgresql://u:p@[::1]:5432/db", ("u", "p", "[::1]", "db")),
        ("postgresql://u:a@b@h/db", ("u", "a@b", "h", "db")),
        ("postgresql://u:a+b@h/db", ("u", "a+b", "h", "db")),
    ],
)
def test_forms_of_a_connection_string(text: str, parts: tuple[str, ...]) -> None:
    """Password and database may be missing; a plus sign is not a space."""
    assert tuple(parse(text)) == parts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mysql://u:s3cret@h/db",
        "u:s3cret@h/db",
        "postgresql://h/s3cret",
        "postgresql://:s3cret@h/db",
        "postgresql://u:s3cret@/db",
        "postgresql://u:s3cret@h:port/db",
        "postgresql://u:s3cret%ff@h/db",
        "postgresql://u:s3cret\udc80@h/db",
    ],
)
def test_a_malformed_connection_string_is_refused(text: str) -> None:
    """With 400, and without a part of it in the message."""
    with pytest.raises(RequestError) as error:
        parse(text)
    assert refusal(error) == (400, "08P01")
    assert "s3cret" not in str(error.value)


def test_a_connection_string_is_not_shown() -> None:
    """Neither a log nor a traceback may quote one."""
    assert "s3cret" not in repr(parse("postgresql://u:s3cret@h/db"))


@given(st.text() | st.text().map("postgresql://{}".format))
def test_any_connection_string_is_read_or_refused(text: str) -> None:
    """Nothing but a RequestError is raised."""
    assert status_of(lambda: parse(text)) in {200, 400}


@pytest.mark.parametrize(
    ("host", "domain", "allowed"),
    [
        ("abc.execute-api.aws", "abc.execute-api.aws", True),
        ("pool.example.com", "api.example.com", True),
        ("pool.example.com", "apiauth.example.com", True),
        ("db.internal", "abc.execute-api.aws", True),
        ("pool.example.com", "abc.example.com", False),
        ("a.pool.example.com", "api.example.com", False),
        ("example.com", "api.example.com", False),
        ("evilexample.com", "api.example.com", False),
        ("pool.evil.com", "api.example.com", False),
        ("pool", "api", False),
        ("api", "api", True),
    ],
)
def test_a_forged_host_is_not_allowed(host: str, domain: str, allowed: bool) -> None:
    """Allowed are the request's host, listed ones, and those that the driver derives it from."""
    assert is_allowed(host, domain, {"db.internal"}) is allowed


def test_header_names_are_case_insensitive() -> None:
    """The driver and proxies write them as they like."""
    assert headers_of({"headers": {"NEON-Raw-Text-OUTPUT": "true"}}) == {
        "neon-raw-text-output": "true"
    }


@pytest.mark.parametrize("value", ["True", "1", "yes", "true ", ""])
def test_a_boolean_header_is_exactly_true(value: str) -> None:
    """Anything else is false."""
    names = ("raw-text-output", "array-mode", "batch-read-only", "batch-deferrable")
    for name in names:
        assert read_modes({f"neon-{name}": value}) == Modes(False, False, None, False, False)
    assert read_modes({f"neon-{name}": "true" for name in names}) == Modes(
        True, True, None, True, True
    )


@pytest.mark.parametrize("name", ["ReadUncommitted", "ReadCommitted", "RepeatableRead"])
def test_levels_of_isolation(name: str) -> None:
    """Each name of the protocol is a level of PostgreSQL."""
    level = read_modes({"neon-batch-isolation-level": name}).isolation_level
    assert level is not None
    assert level.name.replace("_", "") == name.upper()


@pytest.mark.parametrize("value", ["serializable", "SERIALIZABLE", "Snapshot", ""])
def test_an_unknown_level_of_isolation(value: str) -> None:
    """The message is the protocol's."""
    with pytest.raises(RequestError, match=r"^invalid isolation level$") as error:
        read_modes({"neon-batch-isolation-level": value})
    assert refusal(error) == (400, "08P01")
    assert (
        read_modes({"neon-batch-isolation-level": "Serializable"}).isolation_level
        == IsolationLevel.SERIALIZABLE
    )


def test_a_body_of_any_content_type() -> None:
    """API Gateway encodes what is not text."""
    encoded = base64.b64encode("{ä}".encode()).decode()
    assert read_body({"body": encoded, "isBase64Encoded": True}, 4) == "{ä}"
    assert read_body({"body": "{ä}", "isBase64Encoded": False}, 4) == "{ä}"
    assert read_body({}, 4) == ""


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("body", ["{ää}", "a" * 100])
def test_a_body_over_the_limit(body: str, encoded: bool) -> None:
    """It is counted in bytes."""
    text = base64.b64encode(body.encode()).decode() if encoded else body
    with pytest.raises(RequestError) as error:
        read_body({"body": text, "isBase64Encoded": encoded}, 5)
    assert refusal(error) == (413, "54000")


def test_a_body_that_is_not_utf8() -> None:
    """It is refused, as are invalid base64 and a lone surrogate."""
    for body in (base64.b64encode(b"\xff").decode(), "a", "ä"):
        with pytest.raises(RequestError, match="the body is not UTF-8"):
            read_body({"body": body, "isBase64Encoded": True}, 100)
    with pytest.raises(RequestError, match="the body is not UTF-8"):
        read_body({"body": "\ud800"}, 100)


def test_a_single_query_and_a_batch() -> None:
    """Missing params are none; arrayMode beats the header."""
    request = queries({"query": "SELECT 1"})
    assert request == ([("SELECT 1", ())], [False], False)
    batch = {"queries": [{"query": "a", "params": ["x"]}, {"query": "b", "arrayMode": False}]}
    assert queries(batch, arrays=True) == ([("a", ("x",)), ("b", ())], [True, False], True)
    assert queries({"queries": []}) == ([], [], True)


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (1, "08P01"),
        ([], "08P01"),
        ({}, "08P01"),
        ({"query": None}, "08P01"),
        ({"query": 1}, "08P01"),
        ({"query": "a", "params": {}}, "08P01"),
        ({"query": "a", "params": ""}, "08P01"),
        ({"query": "a", "params": False}, "08P01"),
        ({"query": "a", "arrayMode": 1}, "08P01"),
        ({"queries": {}}, "08P01"),
        ({"queries": ["a"]}, "08P01"),
        ({"queries": [{"query": "a"}] * 11}, "54000"),
    ],
)
def test_what_a_body_may_not_be(document: Any, code: str) -> None:
    """Each is refused with 400 before anything is sent."""
    with pytest.raises(RequestError) as error:
        queries(document)
    assert refusal(error) == (400, code)


@pytest.mark.parametrize(
    "body",
    ["", "{", "nul", "[NaN]", "[-Infinity]", "\ufeff{}", "[" * 10_000, '{"a":' * 10_000, "[01]"],
)
def test_a_body_that_is_not_json(body: str) -> None:
    """It is refused, however deep it nests."""
    with pytest.raises(RequestError) as error:
        read_json(body)
    assert refusal(error) == (400, "08P01")


@pytest.mark.parametrize("depth", range(100, 1200, 50))
def test_a_parameter_of_any_depth(depth: int) -> None:
    """It is written, or refused: reading and writing may stop at different depths."""
    body = f'{{"query": "a", "params": [{"[" * depth}{{}}{"]" * depth}]}}'
    read = partial(read_request, body, arrays=False, max_statements=1)
    status = status_of(read)
    assert status in {200, 400}
    if status == 200:
        literal = f'{"{" * depth}"{{}}"{"}" * depth}'
        assert read().statements[0].params == (literal,)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("null", None),
        ('"é\\n"', "é\n"),
        ("true", "true"),
        ("1.10", "1.10"),
        ("1e400", "1e400"),
        ("-0", "-0"),
        ("9" * 10_000, "9" * 10_000),
        ('{"a": [1.50, "é", null, true, {}]}', '{"a":[1.50,"é",null,true,{}]}'),
        ("[]", "{}"),
        ('[1, 2.50, true, null, "null"]', '{1,2.50,true,NULL,"null"}'),
        ('["a\\"b\\\\c", "", "{x,y}"]', '{"a\\"b\\\\c","","{x,y}"}'),
        ('[["a"], [null]]', '{{"a"},{NULL}}'),
        ('[{"a": "b"}]', '{"{\\"a\\":\\"b\\"}"}'),
    ],
)
def test_parameters_are_postgresqls_text(value: str, text: str | None) -> None:
    """Numbers keep their digits, arrays become literals, objects their JSON text."""
    assert as_texts(read_json(f"[{value}]")) == (text,)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON | st.fixed_dictionaries({}, optional={"query": JSON, "params": JSON, "queries": JSON}))
def test_any_json_is_read_or_refused(document: Any) -> None:
    """Nothing but a RequestError with 400 is raised."""
    assert status_of(lambda: queries(document)) in {200, 400}


@given(st.text())
def test_any_text_is_read_or_refused(body: str) -> None:
    """Nothing but a RequestError with 400 is raised."""
    read = partial(read_request, body, arrays=False, max_statements=1)
    assert status_of(read) in {200, 400}


@given(JSON)
def test_an_object_keeps_its_meaning(value: Any) -> None:
    """What is written of an object reads as the object."""
    (text,) = as_texts(read_json(json.dumps([{"a": value}])))
    assert text is not None
    assert json.loads(text) == {"a": value}
