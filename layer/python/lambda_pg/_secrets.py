"""One call of Secrets Manager, without boto3 where the function's environment has its keys.

Nothing here imports psycopg: the first fetch of an environment runs while psycopg is imported.
"""

import datetime
import json
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from lambda_pg._http import UnusualAnswerError, post
from lambda_pg._signature import Keys, sign

FETCH_TIMEOUT: Final = 5.0
"""Seconds after which a fetch gives up, whoever waits for it."""


class SecretError(Exception):
    """Report that a secret could not be had; `passing` says that asking again may succeed."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        """Take a message that names the secret and holds nothing of it."""
        super().__init__(message)
        self.passing = passing


_PASSING: Final = {"ThrottlingException", "InternalServiceError", "ServiceUnavailable"}


class Fetch(threading.Thread):
    """One fetch, in a thread of its own: no resolver and no slow answer can hold up who waits."""

    def __init__(self, arn: str, stage: str = "AWSCURRENT") -> None:
        """Take the secret's ARN and the staging label of its version; `start` asks."""
        super().__init__(name="lambda_pg secret", daemon=True)
        self.arn = arn
        self.started_at = time.time()
        self._stage = stage
        self._secret: str | None = None
        self._error: SecretError | None = None

    def run(self) -> None:
        """Ask."""
        try:
            self._secret = fetch_secret(self.arn, stage=self._stage, timeout=FETCH_TIMEOUT)
        except SecretError as error:
            self._error = error

    def result(self, timeout: float) -> str:
        """Wait at most `timeout` seconds for the secret; raises SecretError."""
        self.join(timeout)
        if self._error is not None:
            raise self._error
        if self._secret is None:
            raise SecretError(
                f"Secrets Manager did not answer for {self.arn} within {timeout:.1f} s",
                passing=True,
            )
        return self._secret


_prefetched: Fetch | None = None


def prefetch(environ: Mapping[str, str]) -> None:
    """Begin to fetch the function's secret, where its environment says which one and how.

    A snapshot must hold no secret, so not under SnapStart.
    """
    global _prefetched  # noqa: PLW0603  # there is one environment, as there is one os.environ
    arn = environ.get("LAMBDA_PG_SECRET_ARN", "")
    if "AWS_LAMBDA_FUNCTION_NAME" not in environ or not _is_usual(arn, environ):
        return
    if environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") != "snap-start":
        _prefetched = Fetch(arn)
        _prefetched.start()


def take_prefetched(arn: str) -> Fetch | None:
    """Return the fetch that was begun early, once."""
    global _prefetched
    fetch, _prefetched = _prefetched, None
    return fetch if fetch is not None and fetch.arn == arn else None


def _drop_prefetched() -> None:
    global _prefetched  # noqa: PLW0603
    _prefetched = None


os.register_at_fork(after_in_child=_drop_prefetched)


def fetch_secret(arn: str, *, timeout: float, stage: str = "AWSCURRENT") -> str:
    """Return the text of a secret's version within `timeout` seconds.

    Raises SecretError: not there, not allowed, no answer in time, or no text.
    """
    ask = {"SecretId": arn} if stage == "AWSCURRENT" else {"SecretId": arn, "VersionStage": stage}
    fetch = _fetch_signed if _is_usual(arn, os.environ) else _fetch_boto3
    return fetch(ask, timeout)


def _is_usual(arn: str, environ: Mapping[str, str]) -> bool:
    """Tell whether the keys are in the environment and the secret is in the aws partition."""
    keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    return arn.startswith("arn:aws:secretsmanager:") and keys <= environ.keys()


def _fetch_signed(ask: Mapping[str, str], timeout: float) -> str:
    """Ask with a signature of our own; what comes back in an unusual form is left to boto3."""
    environ, arn = os.environ, ask["SecretId"]
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
    body = json.dumps(ask).encode()
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
        status, answer = post(endpoint, body, signed, timeout)
        document = json.loads(answer)
    except UnusualAnswerError:
        return _fetch_boto3(ask, timeout)
    except (OSError, ValueError) as error:
        raise SecretError(
            f"Secrets Manager did not answer for {arn}: {error}", passing=True
        ) from error
    if status >= 500 or not isinstance(document, dict):
        raise SecretError(f"Secrets Manager failed for {arn}: status {status}", passing=True)
    if status != 200:
        # "__type" may be prefixed by a namespace; the message of AWS names the ARN, no secret.
        kind = str(document.get("__type", status)).rpartition("#")[2]
        raise SecretError(
            f"Secrets Manager refused {arn}: {kind} {document.get('message', '')}".rstrip(),
            passing=kind in _PASSING,
        )
    return _text(arn, document)


def _fetch_boto3(ask: Mapping[str, str], timeout: float) -> str:
    """Ask through boto3: it knows every source of keys and every partition."""
    arn = ask["SecretId"]
    try:
        import boto3  # noqa: PLC0415  # 200 ms of a cold start, paid only on this path
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import (  # noqa: PLC0415
            BotoCoreError,
            ClientError,
            HTTPClientError,
        )
    except ImportError as error:
        raise SecretError(
            f"the secret {arn} needs boto3, which Lambda has and this environment has not: "
            "pip install boto3, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    each = timeout / 2  # connecting and reading have a timeout of their own
    config = Config(connect_timeout=each, read_timeout=each, retries={"total_max_attempts": 1})
    region = arn.split(":")[3] if arn.startswith("arn:") else None
    try:
        client = boto3.client("secretsmanager", region_name=region, config=config)
        return _text(arn, client.get_secret_value(**ask))
    except HTTPClientError as error:
        raise SecretError(
            f"Secrets Manager did not answer for {arn}: {error}", passing=True
        ) from error
    except (BotoCoreError, ClientError) as error:
        raise SecretError(f"Secrets Manager did not answer for {arn}: {error}") from error


def _text(arn: str, document: Mapping[str, Any]) -> str:
    text = document.get("SecretString")
    if not isinstance(text, str):
        raise SecretError(f"the secret {arn} is binary, not a JSON text")
    return text
