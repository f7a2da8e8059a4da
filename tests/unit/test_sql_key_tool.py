"""`make sql-key`: the function reads what it writes, and concurrent changes are not lost."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from moto import mock_aws

from lambda_pg_cdk.functions.sql.sql_http.callers import Caller
from lambda_pg_cdk.functions.sql.sql_http.keys import Keys
from lambda_pg_cdk.stage.loading import load_stage
from lambda_pg_cdk.tools import sql_key
from lambda_pg_cdk.tools.keys_secret import ATTEMPTS, LARGEST, KeysSecret, KeysSecretError

CONFIG = load_stage("dev", {"sql": {"enabled": True, "roles": ["reader", "writer"]}})
URL = "https://abc.execute-api.eu-west-1.amazonaws.com/sql"
FIND = sql_key.find
NAMED = {"Name": "any", "Type": "String", "Value": "any"}
RESOURCE = {"Type": "AWS::SSM::Parameter", "Properties": NAMED}


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give an AWS account with a table of keys."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        client("secretsmanager").create_secret(Name="keys", SecretString='{"keys": {}}')
        monkeypatch.setattr(sql_key, "load_stage", lambda _stage: CONFIG)
        monkeypatch.setattr(sql_key, "find", lambda *_: sql_key.Deployed(secret(), URL))
        yield


def client(service: str) -> Any:
    """Return a client of the region of the stage."""
    return boto3.client(service, region_name=CONFIG.region)


def secret() -> KeysSecret:
    """Return the table in the account."""
    manager = client("secretsmanager")
    (found,) = manager.list_secrets()["SecretList"]
    return KeysSecret(manager, found["ARN"])


def run(*arguments: str) -> int:
    """Run the tool for the stage."""
    return sql_key.main(["--stage", "dev", *arguments])


def caller(shown: str) -> Caller | None:
    """Ask the function's own code who a connection string is of."""
    found = re.search(r"postgresql://([^:]+):([\w-]{43})@", shown)
    assert found is not None
    keys = Keys(lambda: secret().read().text, sql_key.rules_of(CONFIG), lifetime=60)
    return keys.find(found[1], found[2])


def test_a_new_key_works_and_its_secret_is_shown_only_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The connection string, the line for the driver, and nothing that can be read again."""
    assert run("create", "web", "--role", "writer", "--max-rows", "5", "--note", "the shop") == 0
    shown = capsys.readouterr().out
    found = caller(shown)
    assert found is not None
    assert (found.key, found.role, found.limits.rows) == ("web", "writer", 5)
    host = "abc.execute-api.eu-west-1.amazonaws.com"
    assert f"@{host}/{CONFIG.database.name}\n" in shown
    assert f"neonConfig.fetchEndpoint = 'https://{host}/sql'" in shown
    kept = secret().read().text
    assert run("list") == 0
    listed = capsys.readouterr().out
    (text,) = re.findall(r"[\w-]{43}(?=@)", shown)
    assert text not in kept + listed
    assert json.loads(kept)["keys"]["web"]["hash"] not in listed
    assert re.search(r"web +writer +20\d\d-\d\d-\d\d +never +free +the shop", listed)


def test_a_stage_with_a_domain_needs_no_other_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only DATABASE_URL changes."""
    sql = {"enabled": True, "hosts": ["pool.example.com"]}
    monkeypatch.setattr(sql_key, "load_stage", lambda _: load_stage("dev", {"sql": sql}))
    assert run("create", "web", "--role", "reader") == 0
    shown = capsys.readouterr().out
    assert "@pool.example.com/" in shown
    assert "fetchEndpoint" not in shown


def test_a_revoked_key_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    """And the tool says for how long a copy may still accept it."""
    run("create", "web", "--role", "reader")
    shown = capsys.readouterr().out
    assert run("revoke", "web") == 0
    assert "at most 60 s more" in capsys.readouterr().out
    assert caller(shown) is None
    assert run("revoke", "web") == 1
    assert "there is no key 'web'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("web", "--role", "caller"), "must be one of reader, writer"),
        (("w:b", "--role", "reader"), "letters, digits, _ and -"),
        (("x" * 33, "--role", "reader"), "1 to 32 letters"),
        (("web", "--role", "reader", "--max-rows", "0"), "above 0"),
        (("web", "--role", "reader", "--statements", "a,b"), "does not have ('a', 'b')"),
        (("old", "--role", "reader"), "there is a key old"),
    ],
)
def test_what_the_function_would_refuse_is_not_written(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor can a key have the id of another one."""
    run("create", "old", "--role", "reader")
    before = secret().read()
    assert run("create", *arguments) == 1
    assert message in capsys.readouterr().err
    assert secret().read() == before


@pytest.mark.parametrize("given", ["2d", "2027-01-31", "2027-01-31T12:00:00+02:00"])
def test_a_key_can_expire(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """After a number of days, or at a time, in UTC unless it names a zone."""
    assert run("create", "web", "--role", "reader", "--expires", given) == 0
    written = datetime.fromisoformat(secret().read().keys["web"]["expires"])
    if given == "2d":
        assert timedelta(0) < datetime.now(UTC) + timedelta(days=2) - written < timedelta(minutes=5)
    else:
        assert written.isoformat().startswith(given)
        assert written.tzinfo is not None


def test_the_list_marks_what_has_expired_and_what_is_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As the function sees it, including entries that were written by hand."""
    run("create", "old", "--role", "reader", "--expires", "2020-01-31")
    secret().change(lambda keys: keys.update(hand={"role": "admin"}, odd=None))
    capsys.readouterr()
    assert run("list") == 0
    shown = capsys.readouterr().out
    assert re.search(r"old +reader +\S+ +2020-01-31 \(expired\)", shown)
    assert "key hand cannot be used: its role is 'admin'" in shown
    assert "key odd cannot be used" in shown


def test_two_operators_at_once_lose_nothing() -> None:
    """The second one's change is repeated on top of the first one's."""
    table, other = secret(), secret()
    seen = []

    def edit(keys: dict[str, Any]) -> None:
        seen.append(sorted(keys))
        if len(seen) == 1:
            other.change(lambda theirs: theirs.update(theirs={}))
        keys["ours"] = {}

    table.change(edit)
    assert seen == [[], ["theirs"]]
    assert sorted(table.read().keys) == ["ours", "theirs"]


def test_a_table_that_changes_all_the_time_is_left_alone() -> None:
    """After a few attempts, with what to do."""
    other = secret()

    def edit(keys: dict[str, Any]) -> None:
        other.change(lambda theirs: theirs.update({str(len(theirs)): {}}))
        keys["ours"] = {}

    with pytest.raises(KeysSecretError, match="by others during each of 5 attempts"):
        secret().change(edit)
    assert sorted(secret().read().keys) == [str(number) for number in range(ATTEMPTS)]


def test_one_version_keeps_the_label_of_the_tool() -> None:
    """A version with a label is never removed, and a secret has about a hundred."""
    for number in range(5):
        secret().change(lambda keys, number=number: keys.update({str(number): {}}))  # type: ignore[misc]
    arn = secret().arn
    versions = client("secretsmanager").describe_secret(SecretId=arn)["VersionIdsToStages"]
    labelled = [stages for stages in versions.values() if stages]
    assert len(labelled) <= 3


def test_a_table_that_is_too_large_is_not_written() -> None:
    """With the size, the limit and what to do."""
    with pytest.raises(KeysSecretError, match=rf"would have \d+ bytes; .* at most {LARGEST}"):
        secret().change(lambda keys: keys.update(web={"note": "x" * LARGEST}))
    assert not secret().read().keys


@pytest.mark.parametrize("text", ["", "{", "[]", '{"keys": []}', '"topsecret"'])
def test_a_broken_table_is_not_overwritten(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor shown: it may hold anything."""
    arn = secret().arn
    with suppress(client("secretsmanager").exceptions.InvalidParameterException):
        client("secretsmanager").put_secret_value(SecretId=arn, SecretString=text or " ")
    assert run("create", "web", "--role", "reader") == 1
    error = capsys.readouterr().err
    assert "correct it by hand" in error
    assert "topsecret" not in error


def test_a_stage_is_found_by_the_outputs_of_its_stack() -> None:
    """Both the table and the URL; a stage that is not deployed, or without `/sql`, says so."""
    outputs = {"SqlKeysArn": {"Value": "the arn"}, "SqlUrl": {"Value": URL}}
    templates = {"dev": {"Outputs": outputs}, "prod": {}}
    for stage, template in templates.items():
        client("cloudformation").create_stack(
            StackName=f"LambdaPg-{stage}-Api",
            TemplateBody=json.dumps(
                {
                    "Resources": {stage: RESOURCE | {"Properties": NAMED | {"Name": stage}}},
                    **template,
                }
            ),
        )
    assert FIND(CONFIG, client).url == URL
    for config in (load_stage("prod"), replace(CONFIG, stage="other")):
        stack = f"{config.stack_prefix}-Api"
        with pytest.raises(sql_key.SqlKeyError, match=f"{stack} has no table of keys: set sql"):
            FIND(config, client)


def test_without_a_stage_the_local_cloud_is_meant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """A key for AWS is made by the name of its stage only."""
    monkeypatch.undo()
    monkeypatch.setenv("LAMBDA_PG_STATE_DIR", str(tmp_path))
    assert sql_key.main(["list"]) == 1
    assert "`make up` starts one" in capsys.readouterr().err
