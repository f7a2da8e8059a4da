"""Tests of a user's own that answer for AWS inside of botocore: the layer asks there."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import boto3
import pytest
from botocore.client import BaseClient
from lambda_pg import _secrets
from lambda_pg._secrets import SecretError, fetch_secret
from moto import mock_aws

from tests.support.servers import SecretsService

ARN = "arn:aws:secretsmanager:us-east-1:000000000000:secret:app"
LAYER = Path(__file__).parents[2] / "layer" / "python"
METHOD = "botocore.client.BaseClient._make_api_call"


@pytest.fixture(autouse=True)
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the layer's own signer sends, which ends here."""
    urls: list[str] = []

    def post(url: str, *_: object) -> tuple[int, bytes]:
        urls.append(url)
        return 200, b'{"SecretString": "signed"}'

    for name in [name for name in os.environ if name.startswith(("AWS_", "HTTP"))]:
        monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "real")
    monkeypatch.setattr(_secrets, "post", post)
    return urls


@pytest.fixture
def moto_server() -> Iterator[SecretsService]:
    """Secrets Manager by moto's server, which a redirection leads to."""
    service = SecretsService()
    yield service
    service.stop()


def test_moto_answers_inside_its_mock_only(requests: list[str]) -> None:
    """Both versions of a secret are those of mock_aws(); before and after, AWS is asked."""
    assert fetch_secret(ARN, timeout=3) == "signed"
    with mock_aws():
        client = boto3.client("secretsmanager", region_name="us-east-1")
        arn = client.create_secret(Name="app", SecretString="first")["ARN"]
        client.put_secret_value(SecretId=arn, SecretString="second")
        assert fetch_secret(arn, timeout=3) == "second"
        assert fetch_secret(arn, timeout=3, stage="AWSPREVIOUS") == "first"
    assert len(requests) == 1
    assert fetch_secret(ARN, timeout=3) == "signed"


def test_a_secret_that_moto_does_not_have_is_refused(requests: list[str]) -> None:
    """The real one is not looked for."""
    with mock_aws(), pytest.raises(SecretError, match="ResourceNotFoundException"):
        fetch_secret(ARN, timeout=3)
    assert not requests


def answer(*_: object) -> dict[str, Any]:
    """Answer any call of AWS."""
    return {"SecretString": "patched"}


@pytest.mark.parametrize(
    "change",
    [
        {"new": answer},
        {"return_value": answer()},
        {"autospec": True, "return_value": answer()},
    ],
)
def test_a_patched_client_answers(requests: list[str], change: Mapping[str, Any]) -> None:
    """What moto's own documentation does for a call that moto lacks."""
    with patch(METHOD, **change):
        assert fetch_secret(ARN, timeout=3) == "patched"
    assert not requests


def test_a_tracer_s_wrapper_is_no_mock(requests: list[str]) -> None:
    """In a function it wraps every call; to go by boto3 there would cost each cold start."""
    with patch(METHOD, new=functools.wraps(BaseClient._make_api_call)(lambda *_: None)):
        assert fetch_secret(ARN, timeout=3) == "signed"
    assert len(requests) == 1


def test_a_botocore_that_another_thread_imports_is_no_mock(
    requests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler imports boto3 while the first fetch begins."""
    monkeypatch.setitem(sys.modules, "botocore.client", ModuleType("botocore.client"))
    assert fetch_secret(ARN, timeout=3) == "signed"
    assert len(requests) == 1


def test_a_redirection_counts_inside_a_mock_too(
    moto_server: SecretsService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS_ENDPOINT_URL leads boto3 past the mock, and the layer with it."""
    for name, text in moto_server.environment.items():
        monkeypatch.setenv(name, text)
    with mock_aws():  # which forgets what the server had
        arn = moto_server.create({"username": "app"})
        assert json.loads(fetch_secret(arn, timeout=3)) == {"username": "app"}


def test_what_was_fetched_early_does_not_count_inside_a_mock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It came from elsewhere."""
    early = _secrets.Fetch(ARN)
    monkeypatch.setattr(_secrets, "_prefetched", early)
    with mock_aws():
        assert _secrets.take_prefetched(ARN) is None
    assert _secrets.take_prefetched(ARN) is early


@pytest.mark.parametrize(("first", "fetched"), [("os", True), ("moto", False), ("pytest", False)])
def test_no_secret_is_fetched_early_in_a_test(first: str, fetched: bool) -> None:
    """An import of the handler must not ask AWS before the test has said who answers."""
    look = "import lambda_pg; print(lambda_pg._secrets._prefetched is not None)"
    function = {
        "AWS_LAMBDA_FUNCTION_NAME": "users",
        "LAMBDA_PG_SECRET_ARN": ARN,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    }
    said = subprocess.run(
        [sys.executable, "-c", f"import {first}; {look}"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(LAYER), **function},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == str(fetched)


@pytest.mark.parametrize(
    "endpoint",
    [None, "https://vpce-0abc.secretsmanager.eu-west-1.vpce.amazonaws.com", "https://a.api.aws"],
)
def test_where_the_layer_stays_here_aws_is_not_asked(
    requests: list[str], monkeypatch: pytest.MonkeyPatch, endpoint: str | None
) -> None:
    """The refusal names the secret and every way out; a server of the test is asked."""
    monkeypatch.setattr(_secrets, "stays_here", True)
    if endpoint is not None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for arn in (ARN, "app", "arn:x"):
        with pytest.raises(SecretError, match=r"lambda_pg_environment.*mock_aws.*AWS_ENDPOINT"):
            fetch_secret(arn, timeout=3)
    assert not requests
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", "http://127.0.0.1:4566")
    assert fetch_secret(ARN, timeout=3) == "signed"
    assert requests == ["http://127.0.0.1:4566"]


def test_where_the_layer_stays_here_moto_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers come from this process."""
    monkeypatch.setattr(_secrets, "stays_here", True)
    with mock_aws():
        client = boto3.client("secretsmanager", region_name="us-east-1")
        arn = client.create_secret(Name="app", SecretString="mocked")["ARN"]
        assert fetch_secret(arn, timeout=3) == "mocked"
