"""Secrets Manager at a second port: the same values, and the same answers."""

import http.client
import json
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError
from lambda_pg._signature import Keys, sign

from tests.support.control_plane import KEY, REGION, ControlPlane


@pytest.fixture
def everything(plane: ControlPlane) -> Any:
    """A client of the port of all services, which others write by."""
    return plane.client("secretsmanager")


@pytest.fixture
def endpoint(plane: ControlPlane) -> Any:
    """A client of the port of Secrets Manager alone, which functions use."""
    return plane.client("secretsmanager", plane.secrets_url)


@pytest.fixture
def secret(everything: Any) -> Iterator[str]:
    """Return the ARN of a secret whose value is `one`."""
    arn = everything.create_secret(Name=f"test-{uuid.uuid4()}", SecretString="one")["ARN"]
    yield str(arn)
    everything.delete_secret(SecretId=arn, ForceDeleteWithoutRecovery=True)


def refusal(client: Any, **asked: str) -> str:
    """Return the name of the error that a value is refused with."""
    with pytest.raises(ClientError) as caught:
        client.get_secret_value(**asked)
    return str(caught.value.response["Error"]["Code"])


def test_a_new_value_is_seen_by_the_next_request(
    everything: Any, endpoint: Any, secret: str
) -> None:
    """Nothing is remembered: a rotation must not meet an old password."""
    assert endpoint.get_secret_value(SecretId=secret)["SecretString"] == "one"
    everything.put_secret_value(SecretId=secret, SecretString="two")
    assert endpoint.get_secret_value(SecretId=secret)["SecretString"] == "two"
    previous = endpoint.get_secret_value(SecretId=secret, VersionStage="AWSPREVIOUS")
    assert previous["SecretString"] == "one"


def test_both_ports_give_the_same_answer(everything: Any, endpoint: Any, secret: str) -> None:
    """Version, labels and dates included."""
    answers = [client.get_secret_value(SecretId=secret) for client in (everything, endpoint)]
    for answer in answers:
        del answer["ResponseMetadata"]
    assert answers[0] == answers[1]


def test_a_rotation_function_can_write_through_it(
    everything: Any, endpoint: Any, secret: str
) -> None:
    """Every operation of the service is there: a pending version, and the move of the labels."""
    token = str(uuid.uuid4())
    endpoint.put_secret_value(
        SecretId=secret, ClientRequestToken=token, SecretString="two", VersionStages=["AWSPENDING"]
    )
    assert endpoint.get_secret_value(SecretId=secret)["SecretString"] == "one"
    before = endpoint.describe_secret(SecretId=secret)["VersionIdsToStages"]
    current = next(version for version, stages in before.items() if "AWSCURRENT" in stages)
    endpoint.update_secret_version_stage(
        SecretId=secret,
        VersionStage="AWSCURRENT",
        MoveToVersionId=token,
        RemoveFromVersionId=current,
    )
    assert everything.get_secret_value(SecretId=secret)["SecretString"] == "two"
    assert endpoint.get_secret_value(SecretId=secret)["SecretString"] == "two"


def test_what_is_not_there_is_refused_as_at_the_other_port(
    plane: ControlPlane, everything: Any, endpoint: Any, secret: str
) -> None:
    """An unknown secret, label or version, another region, and a secret that was deleted."""
    abroad = plane.client("secretsmanager", plane.secrets_url, region="eu-west-1")
    assert refusal(endpoint, SecretId="none") == "ResourceNotFoundException"
    assert refusal(endpoint, SecretId=secret, VersionStage="X") == "ResourceNotFoundException"
    assert refusal(endpoint, SecretId=secret, VersionId=str(uuid.uuid4())) == (
        "ResourceNotFoundException"
    )
    name = everything.describe_secret(SecretId=secret)["Name"]
    assert refusal(abroad, SecretId=name) == "ResourceNotFoundException"
    everything.delete_secret(SecretId=secret)
    assert refusal(endpoint, SecretId=secret) == "InvalidRequestException"


def signed(url: str, target: str, body: bytes, key: str = KEY) -> dict[str, str]:
    """Sign a request as the layer does; return its headers."""
    return sign(
        Keys("local", key),
        region=REGION,
        service="secretsmanager",
        headers={"host": urlsplit(url).netloc, "x-amz-target": target},
        body=body,
        now=datetime.now(UTC),
    )


def test_other_services_and_requests_without_a_length_are_refused(plane: ControlPlane) -> None:
    """The caller learns what the port is for."""
    url = plane.secrets_url
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)) as connection:
        connection.request("POST", "/", b"{}", signed(url, "AWSLambda.ListFunctions", b"{}"))
        answer = connection.getresponse()
        assert (answer.status, json.load(answer)["__type"]) == (400, "UnknownOperationException")
        headers = signed(url, "secretsmanager.GetSecretValue", b"nonsense")
        connection.request("POST", "/", b"nonsense", headers)
        answer = connection.getresponse()
        assert (answer.status, json.load(answer)["__type"]) == (400, "SerializationException")
        connection.putrequest("POST", "/")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        assert connection.getresponse().status == 411


STRANGERS = {
    "unsigned": ({}, "not signed"),
    "another key": (None, "not of this cloud's key"),
    "host": ({"host": "evil.example"}, "Host is 'evil.example'"),
    "origin": ({"origin": "http://evil.example"}, "Origin is 'http://evil.example'"),
    "site": ({"sec-fetch-site": "cross-site"}, "Sec-Fetch-Site is 'cross-site'"),
}


@pytest.mark.parametrize("port", ["all services", "secrets"])
@pytest.mark.parametrize("who", STRANGERS)
def test_a_stranger_gets_no_value_at_either_port(
    plane: ControlPlane, secret: str, port: str, who: str
) -> None:
    """Without the key, and from a page even with it; no page may read the answer."""
    url = plane.url if port == "all services" else plane.secrets_url
    body = json.dumps({"SecretId": secret}).encode()
    target = "secretsmanager.GetSecretValue"
    more, reason = STRANGERS[who]
    if who == "unsigned":
        headers = {"x-amz-target": target}
    else:
        headers = signed(url, target, body, KEY if more else "local") | (more or {})
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)) as connection:
        connection.request("POST", "/", body, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
    assert answer.status == 403
    assert reason in json.loads(text)["message"]
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_no_page_may_read_an_answer(plane: ControlPlane, secret: str) -> None:
    """MiniStack's own permission for every origin does not leave, not even to the owner."""
    body = json.dumps({"SecretId": secret}).encode()
    headers = signed(plane.url, "secretsmanager.GetSecretValue", body)
    with closing(http.client.HTTPConnection(urlsplit(plane.url).netloc, timeout=10)) as connection:
        connection.request("POST", "/", body, headers)
        answer = connection.getresponse()
        answer.read()
    assert answer.status == 200
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
