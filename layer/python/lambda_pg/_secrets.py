"""One call of Secrets Manager, without boto3 where the function's environment has its keys.

Nothing here imports psycopg: the first fetch of an environment runs while psycopg is imported.
"""

import datetime
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from ssl import SSLCertVerificationError
from typing import Any, Final
from urllib.parse import urlsplit

from lambda_pg._http import UnusualAnswerError, post
from lambda_pg._signature import Keys, sign

FETCH_TIMEOUT: Final = 30.0
"""Seconds after which a fetch gives up. A request waits less: its checkout timeout."""


class SecretError(Exception):
    """Report that a secret was not fetched; `passing` means that a retry may succeed."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        """Take a message that names the secret and contains no part of it."""
        super().__init__(message)
        self.passing = passing


_PASSING: Final = {
    *("ThrottlingException", "InternalServiceError", "ServiceUnavailable"),
    *("RequestExpired", "RequestTimeTooSkewed"),
}
_OTHER_TIME: Final = ("Signature expired", "Signature not yet current")
"""How the messages about a signature with a wrong time begin. A clock is soon corrected, and a
request that was signed before a freeze is signed again."""

_UNTRUSTED: Final = (
    "Secrets Manager's certificate was not accepted for {}: {}. If it has expired or is not valid "
    "yet, check the clock of this environment; else check AWS_CA_BUNDLE, and proxies that inspect "
    "TLS"
)
"""With the ARN and the reason. A retry would not help."""

_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_UNUSUAL: Final = (
    "HTTPS_PROXY",
    "https_proxy",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT",
)


stays_here = False
"""Whether AWS is never called: lambda_pg.testing sets it during a test."""

_STAYS_HERE: Final = (
    "the secret {} was not fetched: under lambda_pg.testing the layer does not call AWS. Import "
    "the handler inside the test, after lambda_pg_environment has set DATABASE_URL; or use "
    "mock_aws() of moto, or set AWS_ENDPOINT_URL to a server of the test"
)

_AWS: Final = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
"""How the names of AWS's own endpoints end, and of those inside a VPC."""


class Fetch(threading.Thread):
    """One fetch, in a separate thread: a slow resolver or answer does not block the caller."""

    def __init__(self, arn: str, stage: str = "AWSCURRENT") -> None:
        """Take the secret's ARN and the staging label of its version; `start` begins."""
        super().__init__(name="lambda_pg secret", daemon=True)
        self.arn = arn
        self.started_at = time.time()
        self._stage = stage
        self._secret: str | None = None
        self._error: SecretError | None = None

    def run(self) -> None:
        """Fetch the secret."""
        try:
            self._secret = fetch_secret(self.arn, stage=self._stage, timeout=FETCH_TIMEOUT)
        except SecretError as error:
            self._error = error.with_traceback(None)  # its frames have keys, or an answer

    def result(self, timeout: float) -> str:
        """Wait at most `timeout` seconds for the secret. Raises SecretError."""
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
    """Begin to fetch the function's secret, if its environment has the ARN and the keys.

    A snapshot must hold no secret, so not under SnapStart.
    """
    global _prefetched  # noqa: PLW0603 - there is one environment, as there is one os.environ
    arn = environ.get("LAMBDA_PG_SECRET_ARN", "")
    if "AWS_LAMBDA_FUNCTION_NAME" not in environ or not _is_usual(arn, environ):
        return
    if environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") != "snap-start":
        _prefetched = Fetch(arn)
        _prefetched.start()


def take_prefetched(arn: str) -> Fetch | None:
    """Return the fetch that began with the environment; only once."""
    global _prefetched  # noqa: PLW0603 - as above
    fetch = _prefetched
    if fetch is None or fetch.arn != arn or _is_mocked():
        return None
    _prefetched = None
    return fetch


def _drop_prefetched() -> None:
    global _prefetched  # noqa: PLW0603 - as above
    _prefetched = None


os.register_at_fork(after_in_child=_drop_prefetched)


def fetch_secret(arn: str, *, timeout: float, stage: str = "AWSCURRENT") -> str:
    """Return the text of a secret's version within `timeout` seconds.

    Raises SecretError: not found, not allowed, no answer in time, or not a text.
    """
    if stays_here and not _is_mocked() and _is_aws(_endpoint(arn)):
        raise SecretError(_STAYS_HERE.format(arn))
    ask = {"SecretId": arn} if stage == "AWSCURRENT" else {"SecretId": arn, "VersionStage": stage}
    fetch = _fetch_signed if _is_usual(arn, os.environ) else _fetch_boto3
    return fetch(ask, timeout)


def _is_usual(arn: str, environ: Mapping[str, str]) -> bool:
    """Tell whether the keys are in the environment, and the endpoint is the plain one."""
    return (
        arn.startswith("arn:aws:secretsmanager:")
        and all(environ.get(name) for name in _KEYS)
        and not any(environ.get(name) for name in _UNUSUAL)
        and not _is_mocked()
    )


def _is_mocked() -> bool:
    """Tell whether a test replaces AWS inside botocore, which only boto3 reaches.

    Tests do so by moto's mock_aws(), or by a patch of the method that makes every call. Tracers
    wrap that method too, and leave its `__module__` as it is.
    """
    stubber = getattr(sys.modules.get("moto.core.models"), "botocore_stubber", None)
    if getattr(stubber, "enabled", False):
        return True
    # Another thread may be importing botocore now: then there may be no class yet.
    client = getattr(sys.modules.get("botocore.client"), "BaseClient", None)
    call = getattr(client, "_make_api_call", None)
    if call is None:
        return False
    return call.__module__ != "botocore.client" or hasattr(call, "mock")  # the latter by autospec


def _endpoint(arn: str) -> str:
    """Return the URL of Secrets Manager: the environment's, else the region's own."""
    return (
        os.environ.get("AWS_ENDPOINT_URL_SECRETS_MANAGER")
        or os.environ.get("AWS_ENDPOINT_URL")
        or f"https://secretsmanager.{''.join(arn.split(':')[3:4])}.amazonaws.com"
    )


def _is_aws(endpoint: str) -> bool:
    try:
        host = urlsplit(endpoint).hostname or ""
    except ValueError:
        return False  # it cannot be called
    return host.rstrip(".").endswith(_AWS)


def _fetch_signed(ask: Mapping[str, str], timeout: float) -> str:
    """Fetch with our own signature; leave an unusual answer to boto3."""
    arn = ask["SecretId"]
    try:
        status, answer = _post_signed(ask, timeout)
    except UnusualAnswerError:
        return _fetch_boto3(ask, timeout)
    except SSLCertVerificationError as error:
        raise SecretError(_UNTRUSTED.format(arn, error)) from error.with_traceback(None)
    except OSError as error:
        raise SecretError(
            f"Secrets Manager did not answer for {arn}: {error}", passing=True
        ) from error.with_traceback(None)  # its frames have the keys
    except ValueError:  # its arguments hold the request, with the token
        raise SecretError(
            f"the request for {arn} cannot be sent: check AWS_ENDPOINT_URL and the keys in the "
            "environment"
        ) from None
    return _read(arn, status, answer)


def _post_signed(ask: Mapping[str, str], timeout: float) -> tuple[int, bytes]:
    environ = os.environ
    region = ask["SecretId"].split(":")[3]
    endpoint = _endpoint(ask["SecretId"])
    access_key, secret_key = (environ[name] for name in _KEYS)
    body = json.dumps(ask).encode()
    signed = sign(
        Keys(access_key, secret_key, environ.get("AWS_SESSION_TOKEN")),
        region=region,
        service="secretsmanager",
        headers={
            "host": urlsplit(endpoint).netloc,
            "content-type": "application/x-amz-json-1.1",
            "x-amz-target": "secretsmanager.GetSecretValue",
        },
        body=body,
        now=datetime.datetime.now(datetime.UTC),
    )
    return post(endpoint, body, signed, timeout)


def _read(arn: str, status: int, answer: bytes) -> str:
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):  # their arguments hold the answer
        document = None
    if status >= 500 or status == 429 or not isinstance(document, dict):
        raise SecretError(
            f"Secrets Manager failed for {arn}: unexpected answer with status {status}",
            passing=True,
        )
    if status != 200:
        # "__type" may be prefixed by a namespace; the message of AWS names the ARN, no secret.
        kind = str(document.get("__type", status)).rpartition("#")[2]
        message = str(document.get("message") or document.get("Message") or "")
        raise SecretError(
            f"Secrets Manager refused {arn}: {kind} {message}".rstrip(),
            passing=_is_passing(kind, message),
        )
    return _text(arn, document)


def _is_passing(kind: str, message: str) -> bool:
    """Tell whether a retry may succeed after a refusal by Secrets Manager."""
    return kind in _PASSING or message.startswith(_OTHER_TIME)


def _fetch_boto3(ask: Mapping[str, str], timeout: float) -> str:
    """Fetch through boto3: it knows every source of keys and every partition."""
    arn = ask["SecretId"]
    try:
        import boto3  # noqa: PLC0415 - 200 ms of a cold start, paid only on this path
        from botocore import exceptions  # noqa: PLC0415 - as above
        from botocore.config import Config  # noqa: PLC0415 - as above
    except ImportError as error:
        raise SecretError(
            f"the secret {arn} needs boto3, which Lambda has and this environment lacks: "
            "pip install boto3, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    each = timeout / 2  # connecting and reading have a timeout each
    config = Config(connect_timeout=each, read_timeout=each, retries={"total_max_attempts": 1})
    region = arn.split(":")[3] if arn.startswith("arn:") else None
    try:
        # A new session: the default one is not thread-safe.
        client = boto3.Session().client("secretsmanager", region_name=region, config=config)
        return _text(arn, client.get_secret_value(**ask))
    except exceptions.ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        answer = error.response.get("Error", {})
        refused = _is_passing(str(answer.get("Code")), str(answer.get("Message")))
        passing = refused or status >= 500 or status == 429
        raise SecretError(
            f"Secrets Manager refused {arn}: {error}", passing=passing
        ) from error.with_traceback(None)
    except exceptions.BotoCoreError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise SecretError(_UNTRUSTED.format(arn, error)) from error.with_traceback(None)
        passing = isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError)
        raise SecretError(
            f"Secrets Manager did not answer for {arn}: {error}", passing=passing
        ) from error.with_traceback(None)


def _text(arn: str, document: Mapping[str, Any]) -> str:
    text = document.get("SecretString")
    if not isinstance(text, str):
        raise SecretError(f"the secret {arn} is binary, not a JSON text")
    return text
