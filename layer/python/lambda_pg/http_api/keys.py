"""Idempotency-Key: the quoted string of the IETF's draft, or the bare text that clients send."""

import re
from typing import Final

LONGEST: Final = 255
"""Characters of a key, without its quotes."""

_QUOTED: Final = re.compile(r'"((?:[\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
"""A string of structured fields (RFC 8941), without spaces."""

_BARE: Final = re.compile(r"[\x21\x23-\x7e][\x21-\x7e]*")


def read_key(value: str) -> str:
    """Return the characters of a key: both forms of the same characters are one key.

    Raises ValueError unless they are 1 to 255 visible ASCII characters.
    """
    value = value.strip(" \t")
    quoted = _QUOTED.fullmatch(value)
    if quoted is not None:
        value = re.sub(r"\\(.)", r"\1", quoted[1])
    elif not _BARE.fullmatch(value):
        raise ValueError("not a key")
    if not 1 <= len(value) <= LONGEST:
        raise ValueError(f"the key has {len(value)} characters; must have 1 to {LONGEST}")
    return value
