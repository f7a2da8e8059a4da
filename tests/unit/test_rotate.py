"""What the rotation function decides without a database: the next user, and what it refuses."""

import sys
from types import ModuleType

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from tests.support.canary import CANARY, assert_nowhere
from tests.support.context import Context
from tests.support.embedded_metrics import assert_embedded_metrics
from tests.support.functions import load_function

MASTER = "arn:aws:secretsmanager:us-east-1:123456789012:secret:master"
EVENT = {"Step": "createSecret", "SecretId": "arn:aws:app", "ClientRequestToken": "a-token"}


@pytest.fixture
def rotate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the function's module, with no service and no database behind it."""
    for name, value in {
        "PGHOST": "database.test",
        "LAMBDA_PG_PROFILE": "direct",
        "LAMBDA_PG_SECRET_ARN": MASTER,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ROTATION", raising=False)
    return load_function("operations/rotate")


def test_it_brings_nothing_but_the_layer_and_boto3(
    rotate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its zip has the migrations' folder, for the roles, and not what migrations run on."""
    for name in ("alembic", "sqlalchemy", "mako"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "lambda_pg_cdk.migrations.roles")
    assert load_function("operations/rotate").handler is not rotate.handler


def test_two_users_take_turns(rotate: ModuleType) -> None:
    """The second one is called after the first, and followed by it."""
    assert rotate.next_user("app", "alternating") == "app_clone"
    assert rotate.next_user("app_clone", "alternating") == "app"
    assert rotate.next_user("app_clone", "single") == "app_clone"


def test_turns_are_the_default(rotate: ModuleType) -> None:
    """An environment without ROTATION has the strategy that refuses no login."""
    assert rotate.ROTATION == "alternating"


@pytest.mark.parametrize("name", ["u" * 58, "ü" * 29, "_clone"])
def test_a_name_without_room_for_another_is_refused(rotate: ModuleType, name: str) -> None:
    """PostgreSQL would cut the second name, down to the first one in the worst case."""
    assert rotate.next_user("u" * 57, "alternating")
    with pytest.raises(rotate.RotationError, match="ROTATION to 'single'"):
        rotate.next_user(name, "alternating")
    assert rotate.next_user(name, "single") == name


def test_an_unknown_strategy_is_named_with_the_known_ones(rotate: ModuleType) -> None:
    """The setting, its value and what it may be."""
    with pytest.raises(rotate.RotationError, match=r"'both': .*'alternating' or 'single'"):
        rotate.next_user("app", "both")


@mock_aws
def test_passwords_need_no_quoting(rotate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are letters and digits, which mean themselves in a URL and in a shell."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    password = rotate.Versions("arn", "token").make_password()
    assert password.isascii()
    assert password.isalnum()
    assert len(password) == rotate.PASSWORD_LENGTH


@pytest.mark.parametrize(
    ("described", "off"), [({"RotationEnabled": True}, 0), ({"RotationEnabled": False}, 1), ({}, 1)]
)
def test_a_rotation_that_is_off_is_told(
    rotate: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    described: dict[str, bool],
    off: int,
) -> None:
    """One that was never set up has no such field. No database is asked, and no value is read."""
    client = boto3.client(
        "secretsmanager", region_name="eu-west-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    stubber = Stubber(client)
    stubber.add_response("describe_secret", described, {"SecretId": EVENT["SecretId"]})
    stubber.activate()
    monkeypatch.setattr(rotate.boto3, "client", lambda *_, **__: client)
    rotate.handler({"Step": "reportSchedule", "SecretId": EVENT["SecretId"]}, Context(3))
    stubber.assert_no_pending_responses()
    (line,) = capsys.readouterr().out.splitlines()
    told = assert_embedded_metrics(line)
    assert (told["RotationOff"], told["Secret"]) == (off, EVENT["SecretId"])


def test_a_secret_s_other_fields_are_kept(rotate: ModuleType) -> None:
    """Whatever is there besides the login travels on."""
    text = '{"username": "app", "password": "p", "engine": "postgres", "port": 5432}'
    assert rotate.parse(text, "AWSCURRENT")["port"] == 5432


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f'{{"password": "{CANARY}"', "is not a JSON object"),
        (f'["{CANARY}"]', "is not a JSON object"),
        (f'{{"password": "{CANARY}"}}', "no text in its field 'username'"),
        (f'{{"username": "", "password": "{CANARY}"}}', "no text in its field 'username'"),
        (f'{{"username": "app", "password": ["{CANARY}"]}}', "no text in its field 'password'"),
        (f'{{"username": "a", "password": "b", "url": "{CANARY}"}}', "has a field 'url'"),
        (f'{{"username": "a", "password": "b", "direct_url": "{CANARY}"}}', "field 'direct_url'"),
    ],
)
def test_a_secret_that_cannot_be_rotated_is_refused(
    rotate: ModuleType, text: str, reason: str
) -> None:
    """The message names version and field, and quotes nothing."""
    with pytest.raises(rotate.RotationError, match=reason) as refused:
        rotate.parse(text, "AWSPENDING")
    assert "AWSPENDING" in str(refused.value)
    assert_nowhere(refused.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Step": None}, "the event has no Step"),
        ({"SecretId": None}, "the event has no SecretId"),
        ({"ClientRequestToken": None}, "the event has no ClientRequestToken"),
        ({"Step": "dropSecret"}, "createSecret, setSecret, testSecret, finishSecret, admitCurrent"),
        ({"Step": "dropSecret"}, "admitCurrent, reportSchedule"),
        ({"Step": "reportSchedule", "SecretId": MASTER}, "master user's"),
        ({"Step": "admitCurrent", "SecretId": None}, "the event has no SecretId"),
        ({"Step": "admitCurrent", "SecretId": MASTER}, "master user's"),
        ({"SecretId": MASTER}, "master user's"),
    ],
)
def test_what_is_no_step_of_a_rotation_is_refused(
    rotate: ModuleType, change: dict[str, object], reason: str
) -> None:
    """Before anybody is asked for anything."""
    with pytest.raises(rotate.RotationError, match=reason):
        rotate.handler(EVENT | change, Context(3))
