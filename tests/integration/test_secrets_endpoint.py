"""Secrets Manager at a second port: the same values, and the same answers."""

import http.client
import json
import socket
import time
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


def request_of(url: str, secret: str) -> bytes:
    """Return the bytes of a request for a value."""
    body = json.dumps({"SecretId": secret}).encode()
    fields = signed(url, "secretsmanager.GetSecretValue", body)
    fields["content-length"] = str(len(body))
    lines = ["POST / HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def read_values(client: socket.socket, count: int) -> list[str]:
    """Read as many answers, and return their values."""
    with client.makefile("rb") as stream:
        values = []
        for _ in range(count):
            head = iter(stream.readline, b"\r\n")
            length = next(int(line[15:]) for line in list(head) if line[:15] == b"Content-Length:")
            values.append(str(json.loads(stream.read(length))["SecretString"]))
        return values


def test_a_request_may_arrive_in_pieces(plane: ControlPlane, secret: str) -> None:
    """Also the second one of a connection."""
    message, address = request_of(plane.secrets_url, secret), urlsplit(plane.secrets_url)
    with socket.create_connection((address.hostname, address.port), 10) as client:
        for cut in (1, len(message) - 1):
            client.sendall(message[:cut])
            time.sleep(0.05)  # else the pieces arrive as one
            client.sendall(message[cut:])
            assert read_values(client, 1) == ["one"]


def test_a_client_that_does_not_read_holds_up_nobody(
    plane: ControlPlane, everything: Any, endpoint: Any, secret: str
) -> None:
    """Its answers wait, and arrive complete."""
    value = "x" * 60_000
    everything.put_secret_value(SecretId=secret, SecretString=value)
    message, address = request_of(plane.secrets_url, secret), urlsplit(plane.secrets_url)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(10)
        client.connect((address.hostname, address.port))
        client.sendall(100 * message)
        assert endpoint.get_secret_value(SecretId=secret)["SecretString"] == value
        assert read_values(client, 100) == 100 * [value]


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
