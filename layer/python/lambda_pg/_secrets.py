"""One call of Secrets Manager, without boto3 where the function's environment has its keys."""

import datetime
import http.client
import json
import os
import ssl
from collections.abc import Mapping
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

from lambda_pg._errors import CredentialsError
from lambda_pg._signature import Keys, sign


class SecretsUnavailableError(CredentialsError):
    """Report that Secrets Manager failed or throttled: asking again may succeed."""


_PASSING: Final = {"ThrottlingException", "InternalServiceError", "ServiceUnavailable"}


def fetch_secret(arn: str, *, timeout: float) -> dict[str, Any]:
    """Return the current version of a JSON secret within `timeout` seconds.

    Raises CredentialsError: not there, not allowed, no answer in time, or no JSON object.
    """
    text = _fetch_signed(arn, timeout) if _is_usual(arn, os.environ) else _fetch_boto3(arn, timeout)
    try:
        secret = json.loads(text)
    except ValueError:
        secret = None
    if not isinstance(secret, dict):
        raise CredentialsError(f"the secret {arn} is not a JSON object with username and password")
    return secret


def _is_usual(arn: str, environ: Mapping[str, str]) -> bool:
    """Tell whether the keys are in the environment and the secret is in the aws partition."""
    keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    return arn.startswith("arn:aws:secretsmanager:") and keys <= environ.keys()


def _fetch_signed(arn: str, timeout: float) -> str:
    environ = os.environ
    region = arn.split(":")[3]
    endpoint = (
        environ.get("AWS_ENDPOINT_URL_SECRETS_MANAGER")
        or environ.get("AWS_ENDPOINT_URL")
        or f"https://secretsmanager.{region}.amazonaws.com"
    )
    keys = Keys(
        environ["AWS_ACCESS_KEY_ID"],
        environ["AWS_SECRET_ACCESS_KEY"],
        environ.get("AWS_SESSION_TOKEN"),
    )
    url = urlsplit(endpoint)
    body = json.dumps({"SecretId": arn}).encode()
    headers = {
        "host": url.netloc,
        "content-type": "application/x-amz-json-1.1",
        "x-amz-target": "secretsmanager.GetSecretValue",
    }
    now = datetime.datetime.now(datetime.UTC)
    signed = sign(
        keys, region=region, service="secretsmanager", headers=headers, body=body, now=now
    )
    try:
        status, answer = _post(url.scheme, url.netloc, body, signed, timeout)
        document = json.loads(answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise SecretsUnavailableError(
            f"Secrets Manager did not answer for {arn}: {error}"
        ) from error
    if status >= 500 or not isinstance(document, dict):
        raise SecretsUnavailableError(f"Secrets Manager failed for {arn}: status {status}")
    if status != 200:
        # "__type" may be prefixed by a namespace; the message of AWS names the ARN, no secret.
        kind = str(document.get("__type", status)).rpartition("#")[2]
        error_type = SecretsUnavailableError if kind in _PASSING else CredentialsError
        raise error_type(
            f"Secrets Manager refused {arn}: {kind} {document.get('message', '')}".rstrip()
        )
    return _text(arn, document)


def _post(
    scheme: str, netloc: str, body: bytes, headers: dict[str, str], timeout: float
) -> tuple[int, bytes]:
    until = monotonic() + timeout
    connection: http.client.HTTPConnection
    if scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(netloc, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(netloc, timeout=timeout)
    try:
        connection.request("POST", "/", body, headers)
        wire = connection.sock
        wire.settimeout(max(0.001, until - monotonic()))
        response = connection.getresponse()
        answer = b""
        # A timeout of http.client is one of each read: an answer in drips would never meet it.
        while part := response.read1(65536):
            answer += part
            wire.settimeout(max(0.001, until - monotonic()))
        return response.status, answer
    finally:
        connection.close()


def _fetch_boto3(arn: str, timeout: float) -> str:
    """Ask through boto3: it knows every source of keys and every partition."""
    import boto3  # noqa: PLC0415  # 200 ms of a cold start, paid only on this path
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import (  # noqa: PLC0415
        BotoCoreError,
        ClientError,
        HTTPClientError,
    )

    each = timeout / 2  # connecting and reading have a timeout of their own
    config = Config(connect_timeout=each, read_timeout=each, retries={"total_max_attempts": 1})
    region = arn.split(":")[3] if arn.startswith("arn:") else None
    try:
        client = boto3.client("secretsmanager", region_name=region, config=config)
        return _text(arn, client.get_secret_value(SecretId=arn))
    except HTTPClientError as error:
        raise SecretsUnavailableError(
            f"Secrets Manager did not answer for {arn}: {error}"
        ) from error
    except (BotoCoreError, ClientError) as error:
        raise CredentialsError(f"Secrets Manager did not answer for {arn}: {error}") from error


def _text(arn: str, document: Mapping[str, Any]) -> str:
    text = document.get("SecretString")
    if not isinstance(text, str):
        raise CredentialsError(f"the secret {arn} is binary, not a JSON text")
    return text
