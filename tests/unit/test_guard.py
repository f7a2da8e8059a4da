"""Which requests a port of the local cloud accepts: by name, by page, by key."""

import datetime
import os
import stat
import string
from pathlib import Path
from types import SimpleNamespace
from unittest import mock
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import example, given
from hypothesis import strategies as st

from lambda_pg_cdk.local.control_plane import signatures
from lambda_pg_cdk.local.control_plane.signatures import Request, presign
from lambda_pg_cdk.local.http import guard
from lambda_pg_cdk.local.processes import open_log
from lambda_pg_cdk.local.state import State, lock

PORT = 4566
OWN = {"host": f"127.0.0.1:{PORT}"}
KEY = "the key of this cloud"


@pytest.mark.parametrize(
    "headers",
    [
        OWN,
        {"host": f"localhost:{PORT}"},
        {**OWN, "origin": f"http://127.0.0.1:{PORT}", "sec-fetch-site": "same-origin"},
        {**OWN, "sec-fetch-site": "none"},
    ],
    ids=["program", "by name", "own page", "address bar"],
)
def test_programs_and_the_ports_own_page_may_ask(headers: dict[str, str]) -> None:
    """Neither curl nor a load tool sends what a page cannot leave out."""
    assert guard.refusal(headers, [PORT]) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Host", "evil.example"),
        ("Host", f"evil.example:{PORT}"),
        ("Host", "127.0.0.1"),
        ("Host", "127.0.0.1:1"),
        ("Host", f"127.0.0.1.evil.example:{PORT}"),
        ("Host", ""),
        ("Origin", "http://evil.example"),
        ("Origin", f"http://localhost:{PORT}"),
        ("Origin", f"https://127.0.0.1:{PORT}"),
        ("Origin", "null"),
        ("Origin", ""),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
        ("Sec-Fetch-Site", ""),
    ],
)
def test_a_foreign_name_or_page_is_refused(name: str, value: str) -> None:
    """The answer names the header, its value and what to do."""
    refused = guard.refusal({**OWN, name.lower(): value}, [PORT])
    assert refused is not None
    assert refused.startswith(f"{name} is {value!r}")
    assert "Ask " in refused


def test_an_origin_that_is_trusted_may_ask_and_no_other() -> None:
    """As an API's CORS configuration says; by the port's own name still."""
    page = {"origin": "http://a.example", "sec-fetch-site": "cross-site"}
    assert guard.refusal(OWN | page, [PORT], {"http://a.example"}.__contains__) is None
    assert guard.refusal(OWN | page, [PORT], {"http://b.example"}.__contains__) is not None
    renamed = {"host": "evil.example"} | page
    assert guard.refusal(renamed, [PORT], {"http://a.example"}.__contains__) is not None


# Signatures

WORD = st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=20)
PATH = st.text(string.ascii_letters + string.digits + "-_.~%:$+", max_size=20).map(
    lambda text: "/" + text.replace("%", "%3A").replace("..", "")
)
SIGNERS = {
    "header": (SigV4Auth, {}),
    "s3 header": (S3SigV4Auth, {}),
    "presigned": (SigV4QueryAuth, {"expires": 60}),
    "s3 presigned": (S3SigV4QueryAuth, {"expires": 60}),
}


def signed(kind: str, request: AWSRequest, region: str, service: str, key: str = KEY) -> Request:
    """Sign as botocore does, and return what arrives."""
    signer, more = SIGNERS[kind]
    keys = Credentials("local", key, "token")
    signer(keys, "s3" if kind.startswith("s3") else service, region, **more).add_auth(request)
    prepared = request.prepare()
    parts = urlsplit(prepared.url)
    headers = {
        name.lower(): value.decode() if isinstance(value, bytes) else str(value)
        for name, value in prepared.headers.items()
    }
    body = prepared.body or b""
    arrived = {"host": parts.netloc} | headers
    return Request(prepared.method, parts.path, parts.query, arrived, body)


@example(
    kind="header", method="GET", path="/", query={"0": " +"}, body=b"", region="0", service="0"
)
@given(
    kind=st.sampled_from(sorted(SIGNERS)),
    method=st.sampled_from(["GET", "POST", "PUT"]),
    path=PATH,
    query=st.dictionaries(WORD, st.text(max_size=10), max_size=3),
    body=st.binary(max_size=50),
    region=WORD,
    service=WORD,
)
def test_what_botocore_signs_is_taken(
    kind: str,
    method: str,
    path: str,
    query: dict[str, str],
    body: bytes,
    region: str,
    service: str,
) -> None:
    """Every request; and none whose method, path, query, name or key is another."""
    headers = {"x-amz-target": "a.B"}
    body = b"" if "presigned" in kind else body
    request = AWSRequest(
        method, f"http://127.0.0.1:{PORT}{path}", headers=headers, params=query, data=body
    )
    arrived = signed(kind, request, region, service)
    assert signatures.claims_signature(arrived.query, arrived.headers)
    assert signatures.refusal(arrived, KEY) is None
    assert signatures.refusal(arrived, f"{KEY}2") is not None
    for change in (
        {"method": "DELETE"},
        {"path": f"{arrived.path}2"},
        {"query": f"{arrived.query}&more=1"},
        {"headers": {**arrived.headers, "host": "evil.example"}},
    ):
        parts = {name: getattr(arrived, name) for name in Request.__slots__} | change
        assert signatures.refusal(Request(**parts), KEY) is not None, change


def test_a_body_that_was_not_signed_is_refused() -> None:
    """A signature that was seen on its way is good for its own request only."""
    arrived = signed("header", AWSRequest("POST", f"http://x:{PORT}/", data=b"one"), "r", "s")
    assert signatures.refusal(arrived, KEY) is None
    other = Request("POST", arrived.path, "", arrived.headers, b"two")
    assert signatures.refusal(other, KEY) is not None


@pytest.mark.parametrize("kind", SIGNERS)
def test_an_old_signature_is_refused(kind: str) -> None:
    """After a quarter of an hour, or after the time that an address was presigned for."""
    request = AWSRequest("GET", f"http://127.0.0.1:{PORT}/")
    arrived = signed(kind, request, "r", "s")
    now = datetime.datetime.now(datetime.UTC)
    minutes = 2 if "presigned" in kind else 16
    later, sooner = now + datetime.timedelta(minutes=minutes), now - datetime.timedelta(minutes=16)
    assert signatures.refusal(arrived, KEY, now) is None
    assert "too long ago" in str(signatures.refusal(arrived, KEY, later))
    assert "in the future" in str(signatures.refusal(arrived, KEY, sooner))


ENDLESS = (
    f"X-Amz-Signature=1&X-Amz-Credential=l/d/r/s/t&X-Amz-Expires={'9' * 30}"
    "&X-Amz-Date=20260101T000000Z&X-Amz-SignedHeaders=host"
)


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", {}),
        ("", {"authorization": "Bearer x"}),
        ("", {"authorization": "AWS4-HMAC-SHA256"}),
        ("", {"authorization": "AWS4-HMAC-SHA256 Credential=a/b/c/d/e, SignedHeaders=host"}),
        ("X-Amz-Signature=", {}),
        ("X-Amz-Signature=%ff&X-Amz-Credential=x&X-Amz-Date=x&X-Amz-Expires=9", {}),
        (
            ENDLESS,
            {},
        ),
        (
            "",
            {
                "authorization": "AWS4-HMAC-SHA256 Credential=l/20260101/r/s/aws4_request, "
                "SignedHeaders=host, Signature=\u00e9",
                "x-amz-date": "20260101T000000Z",
            },
        ),
    ],
)
def test_nonsense_is_refused(query: str, headers: dict[str, str]) -> None:
    """With a reason, never with an exception."""
    request = Request("GET", "/", query, {"host": "127.0.0.1"} | headers, b"")
    assert signatures.refusal(request, KEY) is not None


def test_an_address_that_is_presigned_here_is_botocores() -> None:
    """The address of a function's code, as S3's are."""
    url = f"http://127.0.0.1:{PORT}/_ministack/lambda-code/000000000000/us-east-1/name:1"
    made = presign(url, KEY, "us-east-1", datetime.timedelta(minutes=10))
    parts = urlsplit(made)
    stamp = parts.query.partition("X-Amz-Date=")[2][:16]
    now = datetime.datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
    request = AWSRequest("GET", url)
    with mock.patch("botocore.auth.get_current_datetime", return_value=now):
        keys = Credentials("local", KEY)
        S3SigV4QueryAuth(keys, "s3", "us-east-1", expires=600).add_auth(request)
    assert sorted(urlsplit(request.url).query.split("&")) == sorted(parts.query.split("&"))
    arrived = Request("GET", parts.path, parts.query, {"host": parts.netloc}, b"")
    assert signatures.refusal(arrived, KEY) is None


# The folder of a cloud


def mode(path: Path) -> int:
    """Return the permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def state(key: str = KEY) -> State:
    """Return some state."""
    url = "http://127.0.0.1:1"
    return State("mark", 1, 2, key, url, url, url, url, "eu-central-1", ready=True)


@pytest.mark.parametrize("umask", [0, 0o077])
def test_a_clouds_folder_and_files_are_its_owners_under_every_umask(
    tmp_path: Path, umask: int
) -> None:
    """Other accounts cannot list the folder, or read the state or a log."""
    before = os.umask(umask)
    try:
        os.close(lock(tmp_path / "state"))
        state().save(tmp_path / "state")
        open_log(tmp_path / "state" / "x.log").close()
    finally:
        os.umask(before)
    assert mode(tmp_path / "state") & 0o066 == 0
    assert {mode(file) for file in (tmp_path / "state").iterdir()} == {0o600}


def test_a_folder_of_another_account_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner could read the key, and replace what the cloud runs."""
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(
        "lambda_pg_cdk.local.state.os", SimpleNamespace(**{**vars(os), "geteuid": lambda: 12345})
    )
    with pytest.raises(PermissionError, match=r"belongs to another account.*LAMBDA_PG_STATE_DIR"):
        lock(tmp_path / "state")


def test_the_key_does_not_show() -> None:
    """Neither in a repr nor in what a traceback prints of it."""
    assert KEY not in repr(state())
