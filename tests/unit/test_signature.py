"""The signer equals botocore's, for requests and for tokens."""

import datetime
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import botocore.session
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st
from lambda_pg import CredentialsError, Settings
from lambda_pg._iam import auth_token, make_token
from lambda_pg._signature import Keys, sign

KEY = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=40)
WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=20)


@given(
    access=KEY,
    secret=KEY,
    token=st.none() | KEY,
    region=WORD,
    service=WORD,
    body=st.binary(max_size=200),
    host=WORD,
)
def test_signature_equals_botocores(
    access: str, secret: str, token: str | None, region: str, service: str, body: bytes, host: str
) -> None:
    """For any keys, region, service, host and body the Authorization header is botocore's."""
    headers = {"host": f"{host}:4566", "x-amz-target": "secretsmanager.GetSecretValue"}
    request = AWSRequest("POST", f"http://{host}:4566/", headers=dict(headers), data=body)
    SigV4Auth(Credentials(access, secret, token), service, region).add_auth(request)
    now = datetime.datetime.strptime(request.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ")
    ours = sign(
        Keys(access, secret, token),
        region=region,
        service=service,
        headers={**headers, "host": urlsplit(request.url).netloc},
        body=body,
        now=now.replace(tzinfo=datetime.UTC),
    )
    assert ours["authorization"] == request.headers["Authorization"]


HOST = st.text("abcXYZ019-.", min_size=1, max_size=30)
NAME = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
INSTANT = st.datetimes(datetime.datetime(2020, 1, 1), datetime.datetime(2040, 1, 1))


@pytest.fixture(scope="module")
def client() -> Any:
    """A client whose keys the test sets: making one takes long."""
    return botocore.session.Session().create_client(
        "rds", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )


@given(
    host=HOST,
    port=st.integers(1, 65535) | st.sampled_from([80, 443, 5432]),
    user=NAME,
    region=WORD,
    keys=st.builds(Keys, KEY, KEY, st.none() | NAME),
    now=INSTANT,
)
def test_token_equals_botocores(
    client: Any,
    host: str,
    port: int,
    user: str,
    region: str,
    keys: Keys,
    now: datetime.datetime,
) -> None:
    """For any endpoint, user, keys and time the token is generate_db_auth_token's."""
    now = now.replace(tzinfo=datetime.UTC)
    client._request_signer._credentials = Credentials(keys.access_key, keys.secret_key, keys.token)
    with mock.patch("botocore.auth.get_current_datetime", return_value=now):
        theirs = client.generate_db_auth_token(host, port, user, region)
    assert make_token(host, port, user, region, keys, now) == theirs


def test_keys_are_masked() -> None:
    """Neither the secret key nor the token shows in a repr."""
    assert "s3cret" not in repr(Keys("AKIA", "s3cret", "t0ken-s3cret"))


IAM = Settings(host="db.example", user="app", region="eu-west-1", auth="iam")


def test_the_token_is_for_the_settings_and_made_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoint, user and region are the settings', the keys the environment's, the port libpq's."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "t0ken")
    address, _, query = auth_token(IAM).partition("/?")
    parameters = {name: values[0] for name, values in parse_qs(query).items()}
    assert address == "db.example:5432"
    assert (parameters["Action"], parameters["DBUser"]) == ("connect", "app")
    assert parameters["X-Amz-Security-Token"] == "t0ken"
    assert parameters["X-Amz-Credential"].startswith("AKIA1/")
    assert "/eu-west-1/rds-db/" in parameters["X-Amz-Credential"]
    assert parameters["X-Amz-Expires"] == "900"
    made = datetime.datetime.strptime(parameters["X-Amz-Date"] + "+0000", "%Y%m%dT%H%M%SZ%z")
    assert abs(datetime.datetime.now(datetime.UTC) - made) < datetime.timedelta(seconds=60)


@pytest.mark.parametrize(
    ("changes", "signed"),
    [
        ({"rds_endpoint": "app.example"}, "app.example:6432"),
        ({"rds_endpoint": "app.example", "rds_port": 5433}, "app.example:5433"),
    ],
)
def test_the_token_is_for_the_endpoint_behind_another_name(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], signed: str
) -> None:
    """RDS refuses a token that names a CNAME, or the port of a tunnel."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    assert auth_token(replace(IAM, port=6432, **changes)).startswith(f"{signed}/?")


def test_keys_that_are_elsewhere_come_through_boto3(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without keys in the environment, as after SnapStart, boto3's sources are asked."""
    file = tmp_path / "credentials"
    file.write_text("[other]\naws_access_key_id = AKIA2\naws_secret_access_key = s3cret\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert "X-Amz-Credential=AKIA2%2F" in auth_token(IAM)


@pytest.mark.parametrize(("profile", "problem"), [(None, "needs a role"), ("gone", "gone")])
def test_no_keys_are_an_error_of_the_credentials(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, profile: str | None, problem: str
) -> None:
    """Without keys anywhere, the layer's own error says what is missing."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    with pytest.raises(CredentialsError, match=problem):
        auth_token(IAM)
