"""A request of `/sql` from event to response, with no server behind it."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lambda_pg import CommitOutcomeUnknownError, ConfigurationError, Database, Settings
from lambda_pg.text import Field, Limits, Result, Statement
from psycopg import IsolationLevel

from lambda_pg_cdk.functions.sql.sql_http.callers import KeyLimits
from lambda_pg_cdk.functions.sql.sql_http.keys import Keys
from lambda_pg_cdk.functions.sql.sql_http.service import Service
from lambda_pg_cdk.functions.sql.sql_http.settings import SqlSettings, login_of
from lambda_pg_cdk.functions.sql.sql_http.statements import digest, read_statements
from lambda_pg_cdk.local.development.log_lines import DatedEntry, parse
from tests.support.context import Context

SECRET = "canary-of-the-secret"
DOMAIN = "api.example.com"
REQUEST = "7e6f2c1a-0000-4000-8000-000000000001"
URL = f"postgresql://web:{SECRET}@pool.example.com/app"
ENVIRONMENT = {
    "SQL_ROLES": json.dumps({"reader": "arn:reader", "writer": "arn:writer", "caller": "arn:c"}),
    "SQL_KEYS_SECRET_ARN": "arn:keys",
    "SQL_KEY_LIFETIME": "60",
    "SQL_DATABASE": "app",
    "PGDATABASE": "app_sql",
    "SQL_MAX_ROWS": "1000",
    "SQL_MAX_BYTES": "5000000",
    "SQL_MAX_STATEMENTS": "3",
    "SQL_MAX_REQUEST_BYTES": "1000",
    "SQL_GZIP": "1",
}
ONE = Result((Field("n", 23, 0, 0, 4, -1),), [("1",)], "SELECT 1")


class Answering(Database[Any]):
    """A database that answers by what a test gives, and keeps what it was asked."""

    def __init__(self, role: str) -> None:
        super().__init__(Settings(host="database.test", user=role, password=""))
        self.calls: list[dict[str, Any]] = []
        self.answers: Callable[[Sequence[Statement]], list[Result]] = lambda asked: (
            [ONE] * len(asked)
        )

    def run_text(self, statements: Sequence[Statement], **options: Any) -> list[Result]:  # type: ignore[override]
        """Answer without a server."""
        self.calls.append({"statements": list(statements), **options})
        return self.answers(statements)


@dataclass
class Door:
    """The function and its databases by role."""

    service: Service
    databases: Mapping[str, Answering]
    table: dict[str, Any] = field(repr=False)

    def send(
        self,
        body: Any,
        url: str | None = URL,
        claims: Mapping[str, str] | None = None,
        **headers: str,
    ) -> dict[str, Any]:
        """Send a request; return the response with its body parsed."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if url is not None:
            named["neon-connection-string"] = url
        context: dict[str, Any] = {"http": {"method": "POST"}, "domainName": DOMAIN}
        if claims is not None:
            context["authorizer"] = {"jwt": {"claims": claims, "scopes": None}}
        text = body if isinstance(body, str) else json.dumps(body)
        event = {
            "requestContext": context,
            "headers": named,
            "body": text,
            "isBase64Encoded": False,
        }
        response = self.service.answer(event, Context(30, REQUEST))
        return {**response, "body": json.loads(response["body"])}

    def fails(self, *arguments: Any, **options: Any) -> tuple[int, str]:
        """Send a request that fails; return status and SQLSTATE."""
        response = self.send(*arguments, **options)
        return response["statusCode"], response["body"]["code"]


def opened(**changes: str) -> Door:
    """Open the function with a key for each role."""
    settings = SqlSettings.from_env({**ENVIRONMENT, **changes})
    statements = read_statements(
        '{"one": {"sql": "SELECT 1", "reads": true}, "two": "UPDATE t"}', ""
    )
    settings = settings._replace(rules=settings.rules._replace(statements=statements))
    key = {
        "hash": hashlib.sha256(SECRET.encode()).hexdigest(),
        "created": "2026-12-01T12:00:00+00:00",
    }
    table = {
        "web": {**key, "role": "reader"},
        "back": {**key, "role": "writer", "retries": True},
        "forms": {**key, "role": "writer", "statements": ["one", "two"]},
    }
    databases = {role: Answering(role) for role in settings.roles}
    keys = Keys(lambda: json.dumps({"keys": table}), settings.rules, lifetime=60)
    return Door(Service(settings, keys, databases.__getitem__), databases, table)


@pytest.fixture
def door() -> Door:
    """The function with the settings of a stage."""
    return opened()


def url(
    key: str = "web", secret: str = SECRET, host: str = "pool.example.com", db: str = "app"
) -> str:
    """Build a connection string."""
    return f"postgresql://{key}:{secret}@{host}/{db}?application_name=x"


def test_a_single_query(door: Door) -> None:
    """It runs as the key's role, within the limits."""
    response = door.send({"query": "SELECT $1", "params": ["x"]})
    assert response["statusCode"] == 200
    assert response["body"]["rows"] == [{"n": 1}]
    assert door.databases["reader"].calls == [
        {
            "statements": [("SELECT $1", ("x",))],
            "limits": Limits(1000, 5_000_000),
            "claims": None,
            "isolation_level": None,
            "read_only": None,
            "deferrable": None,
            "idempotent": False,
        }
    ]


BATCH_HEADERS: dict[str, Any] = {
    "neon_batch_isolation_level": "RepeatableRead",
    "neon_batch_read_only": "true",
    "neon_batch_deferrable": "true",
}


def test_a_batch_has_its_modes_and_repeats_them(door: Door) -> None:
    """The headers of a batch that were set come back."""
    response = door.send({"queries": [{"query": "a"}, {"query": "b"}]}, **BATCH_HEADERS)
    assert [each["rows"] for each in response["body"]["results"]] == [[{"n": 1}]] * 2
    (call,) = door.databases["reader"].calls
    assert call["isolation_level"] is IsolationLevel.REPEATABLE_READ
    assert (call["read_only"], call["deferrable"]) == (True, True)
    assert (
        response["headers"].items()
        >= {
            "Neon-Batch-Isolation-Level": "RepeatableRead",
            "Neon-Batch-Read-Only": "true",
            "Neon-Batch-Deferrable": "true",
        }.items()
    )


def test_headers_of_a_batch_mean_nothing_to_a_single_query(door: Door) -> None:
    """But an unknown level of isolation is refused, also there."""
    response = door.send({"query": "a"}, **BATCH_HEADERS)
    assert not any(name.startswith("Neon-") for name in response["headers"])
    assert door.databases["reader"].calls[0]["isolation_level"] is None
    assert door.fails({"query": "a"}, neon_batch_isolation_level="Best") == (400, "08P01")


def test_an_empty_batch_asks_nothing(door: Door) -> None:
    """Its answer has no results."""
    assert door.send({"queries": []})["body"] == {"results": []}
    assert door.databases["reader"].calls == []


@pytest.mark.parametrize(
    ("string", "code"),
    [
        (None, "08P01"),
        ("postgresql://pool.example.com/app", "08P01"),
        (url(host="evil.com"), "08001"),
        (url(host="169.254.169.254"), "08001"),
        (url(key="nobody"), "28P01"),
        (url(secret="wrong"), "28P01"),
        ("postgresql://web@pool.example.com/app", "28P01"),
        (url(db="postgres"), "3D000"),
        (url(db=""), "3D000"),
    ],
)
def test_who_is_not_let_in(door: Door, string: str | None, code: str) -> None:
    """Nothing reaches the database, and nothing connects to another host or database."""
    assert door.fails({"query": "SELECT 1"}, string) == (400, code)
    assert not any(each.calls for each in door.databases.values())


def test_one_message_for_every_wrong_key(door: Door) -> None:
    """It does not show whether the key exists, and the database's name is checked later."""
    strings = [url(key="nobody"), url(secret="wrong"), url(secret="wrong", db="x")]
    bodies = [door.send({"query": "SELECT 1"}, string)["body"] for string in strings]
    assert bodies[0] == bodies[1] == bodies[2]


def test_both_names_of_the_database(door: Door) -> None:
    """A connection string may have the stage's name and the pooler's."""
    for name in ("app", "app_sql"):
        assert door.send({"query": "SELECT 1"}, url(db=name))["statusCode"] == 200


def test_hosts_of_the_setting() -> None:
    """A stage may allow more hosts."""
    door = opened(SQL_HOSTS="db.internal,Other.internal")
    for host in ("db.internal", "other.INTERNAL", DOMAIN):
        assert door.send({"query": "SELECT 1"}, url(host=host))["statusCode"] == 200


def test_registered_statements_only(door: Door) -> None:
    """One other statement refuses the batch, before anything is sent."""
    forms = url("forms")
    assert door.send({"query": "SELECT 1"}, forms)["statusCode"] == 200
    batch = {"queries": [{"query": "SELECT 1"}, {"query": "SELECT  1"}]}
    assert door.fails(batch, forms) == (400, "42501")
    assert len(door.databases["writer"].calls) == 1


@pytest.mark.parametrize(
    ("key", "texts", "retried"),
    [
        ("web", ["SELECT 1"], True),
        ("back", ["UPDATE t"], True),
        ("forms", ["SELECT 1", "SELECT 1"], True),
        ("forms", ["SELECT 1", "UPDATE t"], False),
        ("web", ["SELECT 2"], False),
        ("web", ["SELECT 1", "SELECT 2"], False),
    ],
)
def test_what_is_retried(door: Door, key: str, texts: list[str], retried: bool) -> None:
    """Registered reads, also of a key with free SQL, and all of a key whose setting says so."""
    assert (
        door.send({"queries": [{"query": each} for each in texts]}, url(key))["statusCode"] == 200
    )
    role = door.table[key]["role"]
    assert door.databases[role].calls[0]["idempotent"] is retried


def test_a_verified_token(door: Door) -> None:
    """Its claims go to row-level security, and only registered statements run."""
    claims = {"sub": "u1"}
    nobody = "postgresql://anyone@pool.example.com/app"
    assert door.send({"query": "SELECT 1"}, nobody, claims)["statusCode"] == 200
    (call,) = door.databases["caller"].calls
    assert call["claims"] == claims
    assert door.fails({"query": "SELECT 2"}, nobody, claims) == (400, "42501")


def test_a_token_that_nobody_verified(door: Door) -> None:
    """Without an authorizer a bearer token has no effect."""
    forged = {"authorization": "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1MSJ9."}
    nobody = "postgresql://anyone@pool.example.com/app"
    assert door.fails({"query": "SELECT 1"}, nobody, **forged) == (400, "28P01")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{", (400, "08P01")),
        ("[" * 999, (400, "08P01")),
        ({"query": "a" * 1000}, (413, "54000")),
        ({"queries": [{"query": "a"}] * 4}, (400, "54000")),
    ],
)
def test_bodies_that_are_refused(door: Door, body: Any, expected: tuple[int, str]) -> None:
    """The limits are the stage's, or the key's where that is lower."""
    assert door.fails(body) == expected


def test_limits_of_a_key(door: Door) -> None:
    """They bound request, batch and answer."""
    door.table["web"]["limits"] = {"statements": 1, "rows": 5, "bytes": 100}
    assert door.fails({"queries": [{"query": "a"}] * 2}) == (400, "54000")
    assert door.fails({"query": "a"}) == (507, "54000")
    assert door.databases["reader"].calls[0]["limits"] == Limits(5, 100)


def test_names_that_every_row_repeats(door: Door) -> None:
    """The limit of bytes counts values; rows that are objects have the names, too."""
    fields = tuple(Field(f"{number:060}", 23, 0, 0, 4, -1) for number in range(100))
    wide = Result(fields, [(None,) * 100] * 4_000, "SELECT 4000")
    door.databases["reader"].answers = lambda _: [wide]
    assert door.fails({"query": "SELECT 1"}, accept_encoding="gzip") == (507, "54000")
    assert door.send({"query": "SELECT 1", "arrayMode": True})["statusCode"] == 200


def test_types_of_users_are_asked_for_once(door: Door) -> None:
    """Only for an answer that is not raw, and once in an environment."""
    listed = Result((Field("c", 90002, 0, 0, -1, -1),), [("{red,NULL}",)], "SELECT 1")
    types = Result((), [("90002", "90001", "0", ","), ("90001", "0", "0", ",")], "SELECT 2")
    reader = door.databases["reader"]
    reader.answers = lambda asked: [types if "pg_type" in asked[0].query else listed]
    assert door.send({"query": "a"}, neon_raw_text_output="true")["body"]["rows"] == [
        {"c": "{red,NULL}"}
    ]
    assert len(reader.calls) == 1
    for _ in range(2):
        assert door.send({"query": "a"})["body"]["rows"] == [{"c": ["red", None]}]
    assert len(reader.calls) == 4
    assert reader.calls[2]["idempotent"]


def test_types_that_cannot_be_read_after_the_commit(door: Door) -> None:
    """The caller learns that the statements were committed: a retry would run them twice."""
    listed = Result((Field("c", 90002, 0, 0, -1, -1),), [("{red}",)], "INSERT 0 1")

    def fail(asked: Sequence[Statement]) -> list[Result]:
        if "pg_type" in asked[0].query:
            raise CommitOutcomeUnknownError("lost")
        return [listed]

    door.databases["reader"].answers = fail
    response = door.send({"query": "a"})
    assert (response["statusCode"], response["body"]["code"]) == (400, "08007")
    assert "committed" in response["body"]["message"]


def test_an_unexpected_error_shows_nothing(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither to the client nor in the log: its text may hold values."""

    def fail(_: Sequence[Statement]) -> list[Result]:
        raise ZeroDivisionError(SECRET)

    door.databases["reader"].answers = fail
    response = door.send({"query": "a"})
    assert (response["statusCode"], response["body"]["message"]) == (
        500,
        "internal error: the log of /sql has the reason",
    )
    (line,) = capsys.readouterr().out.splitlines()
    assert SECRET not in line + json.dumps(response)
    assert json.loads(line)["reason"].startswith("ZeroDivisionError at test_sql_service.py:")


def test_one_line_for_each_request(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    """It has the key's id and hashes of the statements: no header, parameter, text or secret."""
    response = door.send(
        {
            "queries": [
                {"query": "SELECT $1 AS canary", "params": ["canary"]},
                {"query": "SELECT 1"},
            ]
        },
        authorization="canary",
    )
    (line,) = capsys.readouterr().out.splitlines()
    assert "canary" not in line
    found = json.loads(line)
    assert found.pop("milliseconds") >= 0
    assert found.pop("bytes") == len(json.dumps(response["body"], separators=(",", ":")))
    assert datetime.fromisoformat(found.pop("timestamp")).utcoffset() == timedelta()
    assert found == {
        "level": "INFO",
        "requestId": REQUEST,
        "message": "sql",
        "key": "web",
        "statements": [digest("SELECT $1 AS canary"), digest("SELECT 1")],
        "rows": 2,
        "sqlstate": None,
        "status": 200,
        "reason": None,
    }


def test_the_log_of_a_request_can_be_found(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    """By `make logs --request`, and at its own time."""
    began = datetime.now(UTC)
    door.send({"query": "SELECT 1"})
    entry = parse("sql", capsys.readouterr().out)
    assert entry is not None
    assert entry.time is not None
    assert abs(entry.time - began) < timedelta(minutes=1)
    assert DatedEntry(entry, entry.time).concerns(REQUEST[:8])
    assert "timestamp" not in entry.text


def test_the_line_of_a_refusal_names_no_key(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong id may be anything, even a secret in the wrong place."""
    door.send({"query": "SELECT canary"}, f"postgresql://{SECRET}:canary@pool.example.com/app")
    (line,) = capsys.readouterr().out.splitlines()
    assert "canary" not in line
    found = json.loads(line)
    assert (found["key"], found["sqlstate"], found["status"]) == (None, "28P01", 400)


def test_a_preflight_and_other_methods(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    """OPTIONS needs no key; anything but POST is refused."""
    context = {"http": {"method": "OPTIONS"}, "domainName": DOMAIN}
    assert door.service.answer({"requestContext": context}, None)["statusCode"] == 200
    context["http"] = {"method": "GET"}
    response = door.service.answer({"requestContext": context}, None)
    assert (response["statusCode"], response["headers"]["Allow"]) == (405, "OPTIONS, POST")


def test_pages_of_an_allowed_origin() -> None:
    """They may read answers and errors."""
    door = opened(SQL_ORIGINS="https://a.dev")
    for string in (URL, None):
        headers = door.send({"query": "a"}, string, origin="https://a.dev")["headers"]
        assert headers["Access-Control-Allow-Origin"] == "https://a.dev"


STRINGS = (
    st.text() | st.builds(url, st.text(), st.text(), st.just(DOMAIN), st.text()) | st.just(URL)
)
BODIES = (
    st.text()
    | st.just('{"query": "SELECT 1"}')
    | st.builds(
        json.dumps,
        st.fixed_dictionaries(
            {
                "query": st.text(),
                "params": st.lists(st.none() | st.text() | st.lists(st.integers())),
            }
        ),
    )
)


@given(STRINGS, BODIES, st.booleans())
def test_any_request_is_answered(string: str, body: str, encoded: bool) -> None:
    """With 200, 400 or 413, never with 500."""
    door = opened()
    context = {"http": {"method": "POST"}, "domainName": DOMAIN}
    headers = {"neon-connection-string": string}
    event = {
        "requestContext": context,
        "headers": headers,
        "body": body,
        "isBase64Encoded": encoded,
    }
    assert door.service.answer(event, Context(30))["statusCode"] in {200, 400, 413}


def test_settings_of_the_environment() -> None:
    """Each variable has its place."""
    settings = SqlSettings.from_env(ENVIRONMENT | {"SQL_ORIGINS": "https://a.dev,https://B.dev"})
    assert settings.rules.limits == KeyLimits(1000, 5_000_000, 3, 1000)
    assert settings.databases == {"app", "app_sql"}
    assert settings.origins == {"https://a.dev", "https://b.dev"}
    assert (settings.hosts, settings.gzip, settings.key_lifetime) == (frozenset(), True, 60.0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"SQL_MAX_ROWS": "many"}, "many"),
        ({"SQL_ROLES": "{"}, "Expecting"),
        ({}, "SQL_ROLES is not set"),
    ],
)
def test_a_wrong_environment(changes: Mapping[str, str], problem: str) -> None:
    """The error names what is wrong."""
    environ = {**ENVIRONMENT, **changes} if changes else {}
    with pytest.raises(ConfigurationError, match=problem):
        SqlSettings.from_env(environ)


def test_the_login_of_a_role() -> None:
    """It is a secret or, with IAM authentication, a database user."""
    environ = {
        "PGHOST": "database.test",
        "AWS_REGION": "us-east-1",
        "LAMBDA_PG_SECRET_ARN": "arn:app",
    }
    assert login_of(environ, "arn:reader").secret_arn == "arn:reader"
    del environ["LAMBDA_PG_SECRET_ARN"]
    found = login_of({**environ, "LAMBDA_PG_AUTH": "iam"}, "sql_reader")
    assert (found.user, found.secret_arn) == ("sql_reader", None)
