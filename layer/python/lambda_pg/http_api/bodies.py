"""Bodies: bytes within a limit, and JSON of which no part surprises a handler."""

import base64
import json
import math
import re
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from lambda_pg.http_api.problems import Problem

MAX_DEPTH: Final = 32
"""How deeply arrays and objects may be nested."""

_JSON: Final = re.compile(r"application/(?:json|[\w!#$&^.+-]+\+json)[ \t]*(?:;.*)?", re.ASCII)

_BRACKETS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', re.DOTALL)
"""A string, which may lack its end, or a bracket. It never backtracks."""


def read_bytes(body: str, *, encoded: bool, limit: int) -> bytes:
    """Return the bytes of an event's body. Raises Problem: 413 before anything is decoded."""
    least = len(body) // 4 * 3 - 2 if encoded else len(body)
    if least > limit:
        raise _too_large(limit)
    try:
        content = base64.b64decode(body, validate=True) if encoded else body.encode()
    except ValueError:  # its arguments hold the body
        raise Problem("malformed-body", "The body is neither text nor base64.") from None
    if len(content) > limit:
        raise _too_large(limit)
    return content


def _too_large(limit: int) -> Problem:
    return Problem("body-too-large", f"The body may have at most {limit} bytes.")


def is_json(content_type: str) -> bool:
    """Tell whether a Content-Type is JSON's. Its parameters mean nothing: JSON is UTF-8."""
    return _JSON.fullmatch(content_type.strip().lower()) is not None


def read_json(content: bytes) -> Any:
    """Parse JSON. Raises Problem."""
    if is_deep(content, MAX_DEPTH):
        detail = f"Arrays and objects may be nested at most {MAX_DEPTH} deep."
        raise Problem("too-deep", detail)
    try:
        value = _DECODER.decode(content.decode())
        if b"\\ud" in content.lower():
            json.dumps(value, ensure_ascii=False).encode()  # no half of a surrogate pair
    except ValueError:  # its arguments hold the body
        raise Problem("malformed-json", "The body is not valid JSON in UTF-8.") from None
    return value


def is_deep(content: bytes, limit: int) -> bool:
    """Tell whether brackets outside of strings are nested more than `limit` deep."""
    if content.count(b"[") + content.count(b"{") <= limit:
        return False
    depth = 0
    for found in _BRACKETS.finditer(content):
        token = found[0]
        if token in {b"[", b"{"}:
            depth += 1
            if depth > limit:
                return True
        elif token in {b"]", b"}"}:
            depth -= 1
    return False


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that occurs twice: parsers differ in which of the values they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a name twice")
    return found


_DECODER: Final = json.JSONDecoder(
    parse_float=_finite, parse_constant=_refuse, object_pairs_hook=_object
)
