"""Registered statements, and the callers of tokens that may send nothing else."""

import json
from pathlib import Path

import pytest

from lambda_pg_cdk.functions.sql.sql_http.callers import KeyLimits, StageRules
from lambda_pg_cdk.functions.sql.sql_http.statements import (
    NONE,
    StatementsError,
    digest,
    load_statements,
    read_statements,
)
from lambda_pg_cdk.functions.sql.sql_http.tokens import (
    TokenError,
    caller_of_token,
    verified_claims,
)
from lambda_pg_cdk.local.http_api.events import claim_text

LIMITS = KeyLimits(1, 2, 3, 4)
READ, WRITE = "SELECT name FROM users WHERE id = $1", "UPDATE users SET name = $1"
SETTER = "SELECT Set_Config($1, $2, true)"
FILE = json.dumps(
    {"read": {"sql": READ, "reads": True}, "write": WRITE, "set": SETTER, "again": {"sql": WRITE}}
)
REGISTERED = read_statements(FILE, "test")
RULES = StageRules(frozenset(("caller",)), "app", LIMITS, REGISTERED)


def event(**claims: object) -> dict[str, object]:
    """Build what an API with a JWT authorizer passes to a function."""
    texts = {name: claim_text(value) for name, value in claims.items()}
    return {"requestContext": {"authorizer": {"jwt": {"claims": texts, "scopes": None}}}}


def test_a_text_is_allowed_exactly() -> None:
    """One more space, another case or a semicolon makes another statement."""
    assert REGISTERED.allows(READ)
    for other in (f"{READ} ", READ.lower(), f"{READ};", f" {READ}", "", READ.replace("$1", "$2")):
        assert not REGISTERED.allows(other)
    assert not NONE.allows(READ)
    assert not REGISTERED.allows("\ud800")


def test_only_what_is_marked_reads() -> None:
    """A text that begins with SELECT may write nevertheless."""
    assert [REGISTERED.reads(each) for each in (READ, WRITE, SETTER, "SELECT 1")] == [
        *(True, False, False, False)
    ]


def test_a_digest_is_the_sha_256_of_the_text() -> None:
    """As `printf %s "$SQL" | sha256sum` prints it."""
    assert digest("SELECT 1") == (
        "e004ebd5b5532a4b85984a62f8ad48a81aa3460c1ca07701f386135d72cdecf5"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('["SELECT 1"]', "is a JSON list; must be an object"),
        ('{"a": 1}', "'a' has no text in its field 'sql'"),
        ('{"a": " "}', "'a' has no text"),
        ('{"a": {"reads": true}}', "'a' has no text"),
        ('{"a": {"sql": "x", "reads": 1}}', "reads 1; must be true or false"),
        ('{"a": {"sql": "x", "read": true}}', r"unknown fields \['read'\]"),
        ('{"a": "x", "b": {"sql": "x", "reads": true}}', "'a' and 'b' have the same text"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(text: str, message: str) -> None:
    """Nothing of it is used."""
    with pytest.raises(StatementsError, match=f"(?s)file.json.*{message}"):
        read_statements(text, "file.json")


def test_every_problem_of_a_file_is_said_at_once() -> None:
    """Each with the name of its statement."""
    with pytest.raises(StatementsError, match=r"'a' has no text.*'b' has the unknown"):
        read_statements('{"a": 1, "b": {"sql": "x", "to": 1}}', "file.json")


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    """A text would have another hash than the one that clients send."""
    file = tmp_path / "file.json"
    file.write_bytes('{"a": "SELECT \'é\'"}'.encode("latin-1"))
    with pytest.raises(StatementsError, match=r"file\.json is not UTF-8"):
        load_statements(file)
    file.write_text('{"a": "SELECT \'é\'"}', "utf-8")
    assert load_statements(file).allows("SELECT 'é'")


def test_a_token_may_run_registered_statements_only() -> None:
    """As the role `caller`, with the stage's limits; no write is retried blindly."""
    caller = caller_of_token(event(sub="5"), RULES)
    assert (caller.key, caller.role, caller.limits) == ("jwt", "caller", LIMITS)
    assert not caller.retries
    assert caller.statements is not None
    assert caller.statements.allows(READ)
    assert not caller.statements.allows("SELECT 1")


def test_a_token_may_not_run_what_could_set_its_claims() -> None:
    """Also where it is registered for a key: the parameters would be the caller's."""
    statements = caller_of_token(event(sub="5"), RULES).statements
    assert statements is not None
    assert REGISTERED.allows(SETTER)
    assert not statements.allows(SETTER)
    other = read_statements('{"a": "UPDATE pg_settings SET setting = $1 WHERE name = $2"}', "test")
    assert not other.for_tokens().allows("UPDATE pg_settings SET setting = $1 WHERE name = $2")


def test_without_a_file_a_token_may_run_nothing() -> None:
    """Without a file no statement is allowed, instead of all."""
    statements = caller_of_token(event(sub="5"), RULES._replace(statements=NONE)).statements
    assert statements is not None
    assert not statements.allows("SELECT 1")


def test_claims_are_the_texts_of_the_authorizer() -> None:
    """What a policy sees of each type of claim."""
    claims = verified_claims(event(sub="5", admin=True, exp=1767225600, groups=["a", "b c"]))
    assert claims == {"sub": "5", "admin": "true", "exp": "1767225600", "groups": "[a b c]"}


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"requestContext": {}},
        {"requestContext": {"authorizer": None}},
        {"requestContext": {"authorizer": {"jwt": {"claims": {}}}}},
        {"requestContext": {"authorizer": {"lambda": {"claims": {"sub": "5"}}}}},
        {"authorizer": {"jwt": {"claims": {"sub": "5"}}}},
        {"headers": {"authorization": "Bearer x"}, "body": '{"requestContext": 1}'},
    ],
)
def test_a_request_without_an_authorizer_has_no_claims(wrong: dict[str, object]) -> None:
    """A header alone proves nothing."""
    assert verified_claims(wrong) is None
    with pytest.raises(TokenError):
        caller_of_token(wrong, RULES)
