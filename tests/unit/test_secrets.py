"""One call of Secrets Manager: what is sent, and what may come back instead of a secret."""

import base64
import json
import multiprocessing
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from lambda_pg import _credentials, _http, _secrets
from lambda_pg._secrets import (
    Fetch,
    SecretError,
    fetch_secret,
    prefetch,
    take_prefetched,
)

from lambda_pg_cdk.local.servers.certificates import Authority
from tests.support.canary import CANARY, assert_nowhere
from tests.support.servers import SecretsService
from tests.support.waiting import wait_until

ARN = "arn:aws:secretsmanager:us-east-1:000000000000:secret:app"
SECRET = json.dumps({"username": "app", "password": CANARY})
KEYS = {"AWS_ACCESS_KEY_ID": "AKIA1", "AWS_SECRET_ACCESS_KEY": "key", "AWS_SESSION_TOKEN": "t0k"}

Answer = Callable[[socket.socket], None]


def reply(status: int, body: bytes, *headers: str) -> Answer:
    """Answer with status and body, as HTTP/1.1 does on a connection that stays open."""

    def answer(wire: socket.socket) -> None:
        head = [f"HTTP/1.1 {status} Something", f"Content-Length: {len(body)}", *headers, "", ""]
        wire.sendall("\r\n".join(head).encode() + body)
        wire.recv(1)  # the client ends it

    return answer


def fail(status: int, **document: str) -> Answer:
    """Answer with an error as AWS writes it."""
    return reply(status, json.dumps(document).encode())


def raw(answer: bytes) -> Answer:
    """Answer with exactly these bytes and end the connection."""
    return lambda wire: wire.sendall(answer)


def stall(wire: socket.socket) -> None:
    """Never answer."""
    with suppress(OSError):
        wire.recv(1)


def drip(head: bytes) -> Answer:
    """Answer with a head at once and then with a byte at a time, without an end."""

    def answer(wire: socket.socket) -> None:
        wire.sendall(head)
        with suppress(OSError):
            while True:
                wire.sendall(b" ")
                time.sleep(0.02)

    return answer


GOOD = reply(200, json.dumps({"SecretString": SECRET}).encode())


class Service:
    """An endpoint that takes whole requests, remembers them, and gives the answers of the test."""

    def __init__(self) -> None:
        """Listen."""
        self.answer: Answer = GOOD
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._wrap: Callable[[socket.socket], socket.socket] = lambda plain: plain
        self._wires: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def secure(self, context: ssl.SSLContext) -> None:
        """Speak TLS from now on."""
        self._wrap = lambda plain: context.wrap_socket(plain, server_side=True)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                wire, _ = self._listener.accept()
                self._wires.append(wire)
                threading.Thread(target=self._serve, args=(wire,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with suppress(OSError), self._wrap(plain) as wire:
            request = b""
            while not is_whole(request):
                if not (part := wire.recv(65536)):
                    return
                request += part
            self.requests.append(request)
            self.answer(wire)

    def stop(self) -> None:
        """Hang up."""
        self._listener.close()
        for wire in self._wires:
            with suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)


def is_whole(request: bytes) -> bool:
    """Tell whether a request has its whole body."""
    head, end, body = request.partition(b"\r\n\r\n")
    return end != b"" and len(body) >= int(fields(head)["content-length"])


def fields(head: bytes) -> dict[str, str]:
    """Return the headers of a request, in lower case."""
    lines = head.decode().split("\r\n")[1:]
    return {name.lower(): text for name, _, text in (line.partition(": ") for line in lines)}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """An endpoint, and the environment of a function that asks there."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    service = Service()
    for name, text in (KEYS | {"AWS_ENDPOINT_URL": service.url}).items():
        monkeypatch.setenv(name, text)
    yield service
    service.stop()


def refused(arn: str = ARN, timeout: float = 3) -> SecretError:
    """Ask; return the error, which names the secret and holds nothing of it."""
    with pytest.raises(SecretError) as caught:
        fetch_secret(arn, timeout=timeout)
    assert arn in str(caught.value)
    assert_nowhere(caught.value)
    return caught.value


# --- what is asked


@pytest.fixture(scope="module")
def moto() -> Iterator[SecretsService]:
    """Secrets Manager as moto has it."""
    service = SecretsService()
    yield service
    service.stop()


def test_both_versions_can_be_had(moto: SecretsService, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current version is what is asked for, the previous one has its label."""
    for name, text in moto.environment.items():
        monkeypatch.setenv(name, text)
    arn = moto.create({"password": "first"})
    moto.put(arn, {"password": "second"})
    assert json.loads(fetch_secret(arn, timeout=3)) == {"password": "second"}
    assert json.loads(fetch_secret(arn, timeout=3, stage="AWSPREVIOUS")) == {"password": "first"}


@pytest.mark.parametrize("token", ["t0k", ""])
def test_what_is_sent_is_signed_as_botocore_signs_it(
    service: Service, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """The request that arrives has the signature that botocore gives to what arrives."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    assert fetch_secret(ARN, timeout=3) == SECRET
    head, _, body = service.requests[0].partition(b"\r\n\r\n")
    sent = fields(head)
    assert head.startswith(b"POST / HTTP/1.1\r\n")
    assert sent["host"] == urlsplit(service.url).netloc
    assert json.loads(body) == {"SecretId": ARN}
    signed = ("content-type", "x-amz-target")
    request = AWSRequest("POST", service.url, {name: sent[name] for name in signed}, body)
    request.context["timestamp"] = sent["x-amz-date"]
    signer = SigV4Auth(Credentials("AKIA1", "key", token or None), "secretsmanager", "us-east-1")
    signer._modify_request_before_signing(request)
    string_to_sign = signer.string_to_sign(request, signer.canonical_request(request))
    assert sent["authorization"].endswith(signer.signature(string_to_sign, request))
    assert sent.get("x-amz-security-token", "") == token


AWS = "secretsmanager.us-east-1.amazonaws.com"


@pytest.fixture
def ca_file(service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The CA of a service that speaks TLS from now on, as localhost and as AWS."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    authority = Authority.create("test CA")
    issued = authority.issue(["localhost", AWS])
    (tmp_path / "server.pem").write_text(issued.chain + issued.private_key)
    (tmp_path / "ca.pem").write_text(authority.pem)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.pem")
    service.secure(context)
    return tmp_path / "ca.pem"


def test_https_is_verified(
    service: Service, monkeypatch: pytest.MonkeyPatch, ca_file: Path
) -> None:
    """A certificate of a CA that AWS_CA_BUNDLE names is trusted for its names and no others."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(ca_file))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://localhost:{service.port}")
    assert fetch_secret(ARN, timeout=3) == SECRET
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{service.port}")
    assert "certificate verify failed" in str(refused())
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://localhost:{service.port}")
    monkeypatch.delenv("AWS_CA_BUNDLE")
    assert "certificate verify failed" in str(refused())


@pytest.fixture
def as_aws(service: Service, monkeypatch: pytest.MonkeyPatch, ca_file: Path) -> Path:
    """The CA of a service that is reached by AWS's own name."""
    connect = socket.create_connection
    monkeypatch.setattr(
        socket, "create_connection", lambda at, **options: connect(("127.0.0.1", at[1]), **options)
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{AWS}:{service.port}")
    return ca_file


def test_aws_is_verified_against_amazons_own_roots(
    service: Service, monkeypatch: pytest.MonkeyPatch, as_aws: Path
) -> None:
    """Whether the system knows them or not; a few are read sooner than all of the system's."""
    assert "certificate verify failed" in str(refused())
    monkeypatch.setattr(_http, "AMAZON_ROOTS", str(as_aws))
    assert fetch_secret(ARN, timeout=3) == SECRET


def test_a_ca_that_only_the_system_knows_is_trusted_too(
    service: Service, monkeypatch: pytest.MonkeyPatch, as_aws: Path
) -> None:
    """A proxy may inspect what goes to AWS: the request is sent once, to who was verified."""
    monkeypatch.setattr(_http, "_trusting", lambda: ssl.create_default_context(cafile=as_aws))
    assert fetch_secret(ARN, timeout=3) == SECRET
    assert len(service.requests) == 1


@pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_setting_that_names_the_roots_is_followed(
    service: Service, monkeypatch: pytest.MonkeyPatch, as_aws: Path, name: str
) -> None:
    """Who says which roots to trust has them trusted, and no others."""
    monkeypatch.setattr(_http, "AMAZON_ROOTS", os.devnull)
    monkeypatch.setenv(name, str(as_aws))
    assert fetch_secret(ARN, timeout=3) == SECRET


def test_an_endpoint_of_its_own_goes_before_the_one_for_all(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS_ENDPOINT_URL_SECRETS_MANAGER beats AWS_ENDPOINT_URL, as in AWS's SDKs."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", service.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert fetch_secret(ARN, timeout=3) == SECRET


# --- what comes back


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (fail(400, __type="ThrottlingException", message="Rate exceeded"), "ThrottlingException"),
        (fail(429, __type="TooManyRequestsException"), "429"),
        (fail(500, __type="InternalServiceError", message="sorry"), "500"),
        (reply(503, b"<html>Service Unavailable</html>"), "503"),
        (reply(200, b"<html>Welcome</html>"), "unexpected answer"),
        (reply(200, b"[]"), "failed"),
        (reply(200, b"[" * 60_000), "unexpected answer"),
        (reply(200, b"\xff\xfe" + CANARY.encode()), "unexpected answer"),
        (
            reply(200, json.dumps({"SecretString": SECRET})[:-1].encode()),
            "unexpected answer",
        ),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + SECRET.encode()), "ended before"),
        (raw(b""), "ended before|did not answer"),
    ],
)
def test_a_failing_service_is_a_passing_failure(
    service: Service, answer: Answer, text: str
) -> None:
    """Throttling, errors of the service and answers that make no sense may be asked again."""
    service.answer = answer
    error = refused()
    assert error.passing
    assert re.search(text, str(error))


@pytest.mark.parametrize("name", ["message", "Message"])
@pytest.mark.parametrize(
    "kind", ["AccessDeniedException", "com.amazon.coral#AccessDeniedException"]
)
def test_a_refusal_is_final_and_says_why(service: Service, kind: str, name: str) -> None:
    """What AWS says is passed on: it names the role and the right that it lacks."""
    service.answer = fail(400, **{"__type": kind, name: "User: role is not authorized to perform"})
    error = refused()
    assert not error.passing
    assert "AccessDeniedException User: role is not authorized to perform" in str(error)
    assert "coral" not in str(error)


OTHER_CLOCKS = [
    ("InvalidSignatureException", "Signature expired: 20261129T1000Z is now earlier than …"),
    (
        "InvalidSignatureException",
        "Signature not yet current: 20261129T1900Z is still later than …",
    ),
    ("RequestTimeTooSkewed", "The difference between the request time and … is too large."),
    ("RequestExpired", "Request has expired."),
]


@pytest.mark.parametrize("arn", [ARN, ARN.replace("arn:aws:", "arn:aws-cn:")])
@pytest.mark.parametrize(("kind", "message"), OTHER_CLOCKS)
def test_a_signature_of_another_time_is_a_passing_failure(
    service: Service, kind: str, message: str, arn: str
) -> None:
    """The clock is set right in a moment, or the request was signed before a freeze."""
    service.answer = fail(400, __type=kind, message=message)
    error = refused(arn)
    assert error.passing
    assert message[:12] in str(error)


@pytest.mark.parametrize("arn", [ARN, ARN.replace("arn:aws:", "arn:aws-cn:")])
def test_a_signature_with_another_key_is_final(service: Service, arn: str) -> None:
    """The same exception's name; a wrong key stays wrong."""
    message = "The request signature we calculated does not match the signature you provided."
    service.answer = fail(400, __type="InvalidSignatureException", message=message)
    assert not refused(arn).passing


def test_a_binary_secret_is_final(service: Service) -> None:
    """A secret that is not text cannot be used, and is not shown."""
    binary = base64.b64encode(SECRET.encode()).decode()
    service.answer = reply(200, json.dumps({"SecretBinary": binary}).encode())
    error = refused()
    assert not error.passing
    assert "binary" in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        stall,
        drip(b"HTTP/1.1 200 OK\r\nX: "),
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"),
    ],
    ids=["stall", "drip of headers", "drip of the body"],
)
def test_a_fetch_ends_in_time(service: Service, answer: Answer) -> None:
    """A service that never answers, or never comes to an end, costs the timeout and no more."""
    service.answer = answer
    began = time.monotonic()
    error = refused(timeout=0.3)
    assert time.monotonic() - began < 2
    assert error.passing


def test_an_endless_answer_ends(service: Service) -> None:
    """An answer of more than a secret can be is not read to its end."""

    def flood(wire: socket.socket) -> None:
        with suppress(OSError):
            wire.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
            while True:
                wire.sendall(b" " * 65536)

    service.answer = flood
    error = refused(timeout=5)
    assert "more than 1 MiB" in str(error)
    assert error.passing


def test_a_service_that_does_not_listen_is_a_passing_failure(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused connection may be tried again."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert refused().passing


@pytest.mark.parametrize("url", ["http://[::1", "127.0.0.1:4566", "http://127.0.0.1:99999", "x"])
def test_an_endpoint_that_is_no_url_is_an_error_of_the_layer(
    service: Service, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """A slip in AWS_ENDPOINT_URL is named, and nothing is asked."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    error = refused()
    assert "AWS_ENDPOINT_URL" in str(error)
    assert not error.passing


def test_keys_that_cannot_be_sent_are_not_shown(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session token with a stray character is an error without the token."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{CANARY}é")
    refused()


# --- what is left to boto3


def test_an_answer_in_an_unusual_form_is_left_to_boto3(service: Service) -> None:
    """Chunks, which Secrets Manager does not send, are understood all the same."""
    document = json.dumps({"SecretString": SECRET}).encode()
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    service.answer = raw(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(document), document))
    assert fetch_secret(ARN, timeout=3) == SECRET
    assert [b"Boto3" in request for request in service.requests] == [False, True]


@pytest.mark.parametrize(
    "changes",
    [
        {"AWS_ACCESS_KEY_ID": ""},
        {"AWS_SECRET_ACCESS_KEY": ""},
        {"AWS_USE_FIPS_ENDPOINT": "true"},
        {"AWS_USE_DUALSTACK_ENDPOINT": "true"},
        {"HTTPS_PROXY": "http://127.0.0.1:1"},
        {"https_proxy": "http://127.0.0.1:1"},
    ],
    ids=str,
)
def test_an_unusual_environment_is_left_to_boto3(
    service: Service, monkeypatch: pytest.MonkeyPatch, changes: Mapping[str, str]
) -> None:
    """Keys from elsewhere, a proxy and endpoints of other kinds are what boto3 knows."""
    monkeypatch.setattr(_secrets, "_fetch_boto3", lambda _ask, _timeout: "from boto3")
    assert fetch_secret(ARN, timeout=3) == SECRET
    for name, text in changes.items():
        monkeypatch.setenv(name, text)
    assert fetch_secret(ARN, timeout=3) == "from boto3"


def test_boto3_finds_keys_that_are_elsewhere(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without keys in the environment, as after SnapStart, boto3's sources are asked."""
    for name in KEYS:
        monkeypatch.delenv(name)
    shared = tmp_path / "credentials"
    shared.write_text("[default]\naws_access_key_id = AKIA2\naws_secret_access_key = key\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    assert fetch_secret(ARN, timeout=3) == SECRET
    assert b"Boto3" in service.requests[0]
    assert b"Credential=AKIA2/" in service.requests[0]


@pytest.mark.parametrize(
    "partition", ["aws-cn:secretsmanager:cn-north-1", "aws-us-gov:secretsmanager:us-gov-west-1"]
)
def test_another_partition_is_left_to_boto3(service: Service, partition: str) -> None:
    """China and GovCloud have their own endpoints; the ARN has the region."""
    arn = f"arn:{partition}:000000000000:secret:app"
    assert fetch_secret(arn, timeout=3) == SECRET
    request = service.requests[0]
    assert b"Boto3" in request
    assert f"/{partition.rpartition(':')[2]}/secretsmanager/".encode() in request


def test_a_name_without_an_arn_is_left_to_boto3(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret can be named without its ARN; the region is the environment's then."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert fetch_secret("app", timeout=3) == SECRET
    assert b"/eu-west-1/secretsmanager/" in service.requests[0]


CHINA = ARN.replace("arn:aws:", "arn:aws-cn:").replace("us-east-1", "cn-north-1")


@pytest.mark.parametrize(
    "answer",
    [
        fail(400, __type="ThrottlingException", message="Rate exceeded"),
        fail(500, __type="InternalServiceError"),
        raw(b""),
        stall,
    ],
    ids=["throttled", "500", "hung up", "stall"],
)
def test_what_passes_also_passes_through_boto3(service: Service, answer: Answer) -> None:
    """Its errors are classified as those of the short way are."""
    service.answer = answer
    assert refused(CHINA, timeout=1).passing


def test_a_refused_connection_also_passes_through_boto3(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing listens: that may change."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert refused(CHINA).passing


def test_a_refusal_through_boto3_is_final(service: Service) -> None:
    """So is one without keys anywhere: neither is mended by waiting."""
    service.answer = fail(400, __type="AccessDeniedException", message="not authorized")
    error = refused(CHINA)
    assert "not authorized" in str(error)
    assert not error.passing


def test_no_keys_anywhere_are_final(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no keys hears it, and does not wait."""
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    error = refused()
    assert not error.passing
    assert "credentials" in str(error)


def test_missing_boto3_is_explained(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where boto3 is needed and missing, the error says what to install or to set."""
    monkeypatch.setitem(sys.modules, "boto3", None)
    error = refused(CHINA)
    assert "pip install boto3" in str(error)
    assert not error.passing


# --- the thread


def test_a_stalled_resolver_does_not_hold_up_who_waits(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lookup of a name cannot be given up; the thread that waits for it can be left behind."""
    answers = threading.Event()
    lookup = socket.getaddrinfo

    def stalled(*args: object) -> object:
        answers.wait(10)
        return lookup(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", stalled)
    fetch = Fetch(ARN)
    fetch.start()
    began = time.monotonic()
    with pytest.raises(SecretError, match=r"within 0\.2 s") as caught:
        fetch.result(0.2)
    assert time.monotonic() - began < 2
    assert caught.value.passing
    answers.set()
    assert fetch.result(5) == SECRET


def test_a_fetch_can_be_waited_for_again(service: Service) -> None:
    """What did not come within one wait comes within the next, or is the same error again."""
    fetch = Fetch(ARN)
    fetch.start()
    assert fetch.result(5) == fetch.result(0) == SECRET
    service.answer = fail(400, __type="AccessDeniedException")
    failed = Fetch(ARN)
    failed.start()
    for timeout in (5, 0):
        with pytest.raises(SecretError, match="AccessDenied"):
            failed.result(timeout)


# --- the fetch that begins with the environment

LAMBDA = KEYS | {"AWS_LAMBDA_FUNCTION_NAME": "f", "LAMBDA_PG_SECRET_ARN": ARN}


@pytest.fixture
def nothing_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose import of the layer has begun no fetch."""
    monkeypatch.setattr(_secrets, "_prefetched", None)


@pytest.mark.parametrize("kind", ["on-demand", "provisioned-concurrency", None])
def test_a_function_begins_to_fetch_at_its_import(
    service: Service, nothing_begun: None, kind: str | None
) -> None:
    """In Lambda, with the usual keys, the secret is on its way before it is needed, once."""
    prefetch(LAMBDA | ({"AWS_LAMBDA_INITIALIZATION_TYPE": kind} if kind else {}))
    fetch = take_prefetched(ARN)
    assert fetch is not None
    assert fetch.result(5) == SECRET
    assert take_prefetched(ARN) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"AWS_LAMBDA_FUNCTION_NAME": None},
        {"LAMBDA_PG_SECRET_ARN": None},
        {"LAMBDA_PG_SECRET_ARN": "app"},
        {"LAMBDA_PG_SECRET_ARN": CHINA},
        {"AWS_ACCESS_KEY_ID": None},
        {"AWS_SECRET_ACCESS_KEY": None},
        {"HTTPS_PROXY": "http://127.0.0.1:1"},
        {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"},
    ],
    ids=str,
)
def test_nothing_else_begins_to_fetch(
    service: Service, nothing_begun: None, changes: Mapping[str, str | None]
) -> None:
    """Outside Lambda, where boto3 is needed, and before a snapshot an import asks nobody."""
    environ: dict[str, str | None] = {**LAMBDA, **changes}
    prefetch({name: text for name, text in environ.items() if text is not None})
    assert take_prefetched(ARN) is None


def test_the_early_fetch_is_for_its_own_secret(service: Service, nothing_begun: None) -> None:
    """A database with another secret does not get this one."""
    prefetch(LAMBDA)
    assert take_prefetched(ARN + "-other") is None
    assert take_prefetched(ARN) is not None


def test_the_early_fetch_is_used_for_the_current_version_only(
    service: Service, nothing_begun: None
) -> None:
    """The first look takes what is on its way; one for the previous version asks on its own."""
    prefetch(LAMBDA)
    begun = _secrets._prefetched
    assert _credentials._start_fetch(ARN, "AWSPREVIOUS") is not begun
    assert _credentials._start_fetch(ARN, "AWSCURRENT") is begun
    assert _credentials._start_fetch(ARN, "AWSCURRENT") is not begun


def test_an_early_fetch_that_waited_long_is_not_used(service: Service, nothing_begun: None) -> None:
    """Provisioned environments wait for hours: the secret may have changed meanwhile."""
    prefetch(LAMBDA)
    begun = _secrets._prefetched
    assert begun is not None
    begun.started_at -= _credentials.PAUSE
    assert _credentials._start_fetch(ARN, "AWSCURRENT") is not begun


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12, of threads
def test_a_forked_child_does_not_use_the_early_fetch(service: Service, nothing_begun: None) -> None:
    """The thread that fetches does not exist in the child: waiting for it would be in vain."""
    service.answer = stall
    prefetch(LAMBDA)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send(take_prefetched(ARN) is None))
    child.start()
    try:
        assert ours.poll(10)
        assert ours.recv()
    finally:
        child.kill()
        child.join()
    assert take_prefetched(ARN) is not None


# --- what the import costs

LAYER = Path(_secrets.__file__).parents[1]

ALONE = """
import sys, types
package = types.ModuleType("lambda_pg")
package.__path__ = [sys.argv[1] + "/lambda_pg"]
sys.modules["lambda_pg"] = package
import lambda_pg._secrets, lambda_pg._signature
print(*sys.modules)
"""

WHOLE = """
import importlib.abc, sys

class UntilAsked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "psycopg" and sys.stdin.readline() != "asked\\n":
            raise SystemExit("nobody asked for the secret")

sys.meta_path.insert(0, UntilAsked())
sys.path.insert(0, sys.argv[1])
from lambda_pg import Settings
from lambda_pg._credentials import CredentialCache
cache = CredentialCache(Settings.from_env())
print(cache.get(5).user)
print(*sys.modules)
"""


def run(program: str, environ: Mapping[str, str], feed: Callable[[], str]) -> list[str]:
    """Run a program in a new interpreter; give it a line when there is one, return its lines."""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(LAYER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(environ),
        text=True,
    ) as process:
        output, _ = process.communicate(feed(), timeout=30)
    assert process.returncode == 0
    return output.splitlines()


def test_asking_needs_neither_psycopg_nor_much_else() -> None:
    """What begins the fetch is imported at once: psycopg and http.client come later or never."""
    (modules,) = run(ALONE, {}, lambda: "")
    assert {"psycopg", "http.client", "email", "boto3", "lambda_pg._errors"}.isdisjoint(
        modules.split()
    )


def test_the_secret_is_fetched_while_psycopg_is_imported(service: Service) -> None:
    """The request is out before the import of psycopg begins; one is enough, without boto3."""

    def asked() -> str:
        wait_until(lambda: service.requests, what="a request")
        return "asked\n"

    user, modules = run(WHOLE, LAMBDA | {"AWS_ENDPOINT_URL": service.url}, asked)
    assert user == "app"
    assert len(service.requests) == 1
    assert {"boto3", "botocore", "http.client"}.isdisjoint(modules.split())
