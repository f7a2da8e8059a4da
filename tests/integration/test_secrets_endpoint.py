"""Secrets Manager at a second port: the same values, and the same answers."""

import http.client
import json
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from tests.integration.control_plane import ControlPlane


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


def test_other_services_and_requests_without_a_length_are_refused(plane: ControlPlane) -> None:
    """The caller learns what the port is for."""
    connection = http.client.HTTPConnection(urlsplit(plane.secrets_url).netloc, timeout=10)
    connection.request("POST", "/", b"{}", {"X-Amz-Target": "AWSLambda.ListFunctions"})
    answer = connection.getresponse()
    assert (answer.status, json.load(answer)["__type"]) == (400, "UnknownOperationException")
    connection.request("POST", "/", b"nonsense", {"X-Amz-Target": "secretsmanager.GetSecretValue"})
    answer = connection.getresponse()
    assert (answer.status, json.load(answer)["__type"]) == (400, "SerializationException")
    connection.putrequest("POST", "/")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    assert connection.getresponse().status == 411
    connection.close()
