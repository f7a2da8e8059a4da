"""Verify AWS Signature Version 4 with the one key of a cloud, and presign URLs. No I/O.

Tests compare it with botocore's signers. The id of the key is not checked: each session of STS has
another id, and MiniStack's Node.js workers use the account's number.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote_plus, urlsplit

ALGORITHM: Final = "AWS4-HMAC-SHA256"
TOLERANCE: Final = timedelta(minutes=15)  # between the signer's clock and this one, as on AWS
REMEMBERED_BYTES: Final = 4096
"""Largest body whose result is cached: a request for a secret has 100 bytes."""
_STAMP: Final = "%Y%m%dT%H%M%SZ"
_UNSIGNED: Final = "UNSIGNED-PAYLOAD"
_SAFE: Final = "-_.~"


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived: path and query still encoded, names of headers in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Claim:
    """The signature of a request, and what it covers."""

    scope: str  # date/region/service/aws4_request
    stamp: str
    signed: str  # names of headers, with semicolons between
    signature: str
    moment: datetime
    lifetime: timedelta | None = None  # of a presigned URL


def claims_signature(query: str, headers: Mapping[str, str]) -> bool:
    """Tell whether a request has a signature at all, before its body is read."""
    return headers.get("authorization", "").startswith(ALGORITHM) or "X-Amz-Signature=" in query


def refusal(request: Request, key: str, now: datetime | None = None) -> str | None:
    """Return why a request is not signed with the key; None if it is."""
    judge = _judge if len(request.body) <= REMEMBERED_BYTES else _judge.__wrapped__
    headers = tuple(request.headers.items())
    claim = judge(request.method, request.path, request.query, headers, request.body, key)
    if isinstance(claim, str):
        return claim
    age = (now or datetime.now(UTC)) - claim.moment
    if not -TOLERANCE <= age <= (claim.lifetime or TOLERANCE):
        return f"it was signed at {claim.stamp}, which is too long ago, or in the future"
    return None


@lru_cache(maxsize=64)
def _judge(
    method: str,
    path: str,
    query: str,
    headers: tuple[tuple[str, str], ...],
    body: bytes,
    key: str,
) -> _Claim | str:
    """Return the claim of a valid signature, or why it is not valid; its age is not checked.

    Environments that start in the same second send the same bytes: in a storm one verification a
    second is enough.
    """
    request = Request(method, path, query, dict(headers), body)
    if not claims_signature(request.query, request.headers):
        return "the request is not signed"
    try:
        claim = _presigned(request) if "X-Amz-Signature=" in request.query else _signed(request)
    except (KeyError, ValueError, TypeError, OverflowError):
        return "its signature cannot be read"
    if "host" not in claim.signed.split(";"):
        return "its signature leaves out the Host header"
    signature = _signature(request, claim, key)
    if not hmac.compare_digest(signature.encode(), claim.signature.encode()):
        return "its signature is not of this cloud's key"
    return claim


def presign(url: str, key: str, region: str, lifetime: timedelta) -> str:
    """Return a URL that can be read (GET) for `lifetime`, as with S3."""
    parts = urlsplit(url)
    now = datetime.now(UTC)
    stamp = now.strftime(_STAMP)
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    asked = {
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"local/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(int(lifetime.total_seconds())),
        "X-Amz-SignedHeaders": "host",
    }
    pairs = [parts.query, *(f"{name}={quote(value, safe=_SAFE)}" for name, value in asked.items())]
    query = "&".join(filter(None, pairs))
    request = Request("GET", parts.path, query, {"host": parts.netloc}, b"")
    signature = _signature(request, _Claim(scope, stamp, "host", "", now, lifetime), key)
    return f"{parts.scheme}://{parts.netloc}{parts.path}?{query}&X-Amz-Signature={signature}"


def _signed(request: Request) -> _Claim:
    listed = request.headers["authorization"][len(ALGORITHM) :].split(",")
    fields = dict(part.strip().partition("=")[::2] for part in listed)
    _, _, scope = fields["Credential"].partition("/")
    stamp = request.headers["x-amz-date"]
    return _Claim(scope, stamp, fields["SignedHeaders"], fields["Signature"], _moment(stamp))


def _presigned(request: Request) -> _Claim:
    fields = dict(_pairs(request.query))
    _, _, scope = fields["X-Amz-Credential"].partition("/")
    lifetime = timedelta(seconds=int(fields["X-Amz-Expires"]))
    signed, signature = fields["X-Amz-SignedHeaders"], fields["X-Amz-Signature"]
    stamp = fields["X-Amz-Date"]
    return _Claim(scope, stamp, signed, signature, _moment(stamp), lifetime)


def _moment(stamp: str) -> datetime:
    """Parse the time of a signature, in UTC; raise ValueError if it has no zone."""
    moment = datetime.fromisoformat(stamp)
    if moment.tzinfo is None:
        raise ValueError(f"no time zone in {stamp}")
    return moment


def _pairs(query: str) -> list[tuple[str, str]]:
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    # botocore signs a space as %20, and may send it as a plus sign.
    return [(unquote_plus(name), unquote_plus(value)) for name, _, value in pairs]


def _signature(request: Request, claim: _Claim, key: str) -> str:
    canonical = hashlib.sha256(_canonical(request, claim).encode()).hexdigest()
    text = f"{ALGORITHM}\n{claim.stamp}\n{claim.scope}\n{canonical}"
    return hmac.digest(_signing_key(key, claim.scope), text.encode(), "sha256").hex()


@lru_cache(maxsize=64)
def _signing_key(key: str, scope: str) -> bytes:
    """Derive the key of a day, a region and a service; cached for the requests of a storm."""
    derived = f"AWS4{key}".encode()
    for part in scope.split("/"):
        derived = hmac.digest(derived, part.encode(), "sha256")
    return derived


def _canonical(request: Request, claim: _Claim) -> str:
    is_s3 = claim.scope.split("/")[2:3] == ["s3"]
    path = request.path or "/"
    query = sorted(
        (quote(name, safe=_SAFE), quote(value, safe=_SAFE))
        for name, value in _pairs(request.query)
        if name != "X-Amz-Signature"
    )
    names = claim.signed.split(";")
    values = [" ".join(request.headers.get(name, "").split()) for name in names]
    return "\n".join(
        [
            request.method,
            path if is_s3 else quote(path, safe=f"/{_SAFE}"),  # only S3 encodes it once
            "&".join(f"{name}={value}" for name, value in query),
            *(f"{name}:{value}" for name, value in zip(names, values, strict=True)),
            "",
            claim.signed,
            _payload(request, claim, is_s3=is_s3),
        ]
    )


def _payload(request: Request, claim: _Claim, *, is_s3: bool) -> str:
    """Return the digest of the body, or the value of a signer that leaves the body out."""
    if claim.lifetime is not None and is_s3:
        return _UNSIGNED
    given = request.headers.get("x-amz-content-sha256", "")
    if (given == _UNSIGNED or given.startswith("STREAMING-")) and (
        "x-amz-content-sha256" in claim.signed.split(";")
    ):
        return given
    return hashlib.sha256(request.body).hexdigest()
