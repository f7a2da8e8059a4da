"""Responses: headers for browsers, compression, and the size limit."""

import json
import sys
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from .errors import LIMIT, RequestError
from .request import (
    ARRAYS,
    CONNECTION_STRING,
    DEFERRABLE,
    ISOLATION_LEVEL,
    RAW,
    READ_ONLY,
    Modes,
    level_name,
)

Response = dict[str, Any]
"""A response in payload format 2.0."""

ALLOW = "OPTIONS, POST"
MAX_AGE = "86400"
"""Seconds for which a browser may remember what it may send."""

SPOKEN = (CONNECTION_STRING, RAW, ARRAYS, ISOLATION_LEVEL, READ_ONLY, DEFERRABLE)

PAYLOAD = 6_000_000
"""Bytes of a body that Lambda can return: 6 MiB, less what headers and status may take."""

PAYS = 16_384
"""Bytes of the smallest body that is compressed: smaller ones are not worth it."""

LONGEST_ESCAPE = 12
"""Bytes that a character takes in JSON at most: two escapes, as for an emoji."""

_ESCAPES_ALL = sys.version_info < (3, 12)
"""Whether Lambda's runtime client escapes all that is not ASCII."""


def respond(status: int, body: str, headers: Mapping[str, str]) -> Response:
    """Build a response with a JSON body."""
    general = {"Content-Type": "application/json", "Cache-Control": "no-store", **headers}
    return {"statusCode": status, "headers": general, "body": body}


def packed(response: Response, *, accepted: bool, max_bytes: int) -> Response:
    """Compress the body if that is `accepted` and makes it smaller.

    Raises RequestError, 507, if the result has more than `max_bytes`.
    """
    body: str = response["body"]
    if len(body) * LONGEST_ESCAPE <= max_bytes and len(body) < PAYS:
        return response
    size = size_in_json(body)
    if accepted and len(body) >= PAYS:
        text = _gzip(body.encode())
        if len(text) < size:
            size = len(text)
            headers = {**response["headers"], "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            response = {**response, "headers": headers, "body": text, "isBase64Encoded": True}
    if size > min(max_bytes, PAYLOAD):
        message = f"the answer has {size} bytes; at most {min(max_bytes, PAYLOAD)} are allowed. "
        raise RequestError(f"{message}The statements were run and committed", LIMIT, 507)
    return response


def _gzip(content: bytes) -> str:
    """Compress, and encode in base64, in which Lambda returns what is not text."""
    import base64  # noqa: PLC0415 - no cold start needs it
    import zlib  # noqa: PLC0415 - as above

    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)  # 31: a gzip header
    return base64.b64encode(compressor.compress(content) + compressor.flush()).decode()


def size_in_json(body: str) -> int:
    """Return the bytes of a JSON text inside of JSON, which is how it leaves the function."""
    if body.isascii() and "\x7f" not in body:
        return len(body) + body.count('"') + body.count("\\")
    return len(json.dumps(body, ensure_ascii=_ESCAPES_ALL).encode()) - 2


@lru_cache
def accepts_gzip(header: str) -> bool:
    """Read Accept-Encoding."""
    for part in header.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() in {"gzip", "*"}:
            return weight.replace(" ", "").rstrip("0.") != "q="
    return False


def cors(origin: str | None, origins: Collection[str]) -> dict[str, str]:
    """Return the headers that let a page of an allowed origin read the answer."""
    if origin is None or not origins:
        return {}
    if "*" in origins:
        return {"Access-Control-Allow-Origin": "*"}
    allowed = {"Access-Control-Allow-Origin": origin} if origin.lower() in origins else {}
    return {**allowed, "Vary": "Origin"}


def add_cors(response: Response, shared: Mapping[str, str]) -> None:
    """Add the headers that `cors` gives to an answer, which may have a Vary already."""
    headers = response["headers"]
    varies = [each["Vary"] for each in (shared, headers) if "Vary" in each]
    headers.update(shared)
    if varies:
        headers["Vary"] = ", ".join(varies)


def preflight(shared: Mapping[str, str]) -> Response:
    """Answer OPTIONS, with the headers that `cors` gives."""
    names = ["Content-Type", "Authorization", *(name.title() for name in SPOKEN)]
    headers = {
        "Allow": ALLOW,
        "Access-Control-Allow-Methods": ALLOW,
        "Access-Control-Allow-Headers": ", ".join(names),
        "Access-Control-Max-Age": MAX_AGE,
        **shared,
    }
    return {"statusCode": 200, "headers": headers, "body": ""}


def echo(modes: Modes) -> dict[str, str]:
    """Return the headers of a batch that were set, as its answer repeats them."""
    headers = {}
    if modes.isolation_level is not None:
        headers[ISOLATION_LEVEL.title()] = level_name(modes.isolation_level)
    if modes.read_only:
        headers[READ_ONLY.title()] = "true"
    if modes.deferrable:
        headers[DEFERRABLE.title()] = "true"
    return headers
