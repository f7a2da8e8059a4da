"""Entity tags: a row's version as a strong ETag, and the tags that a request sends (RFC 9110)."""

import re
from typing import Final, NamedTuple

ANY: Final = "*"
"""The field value that every existing row matches."""

_TAG: Final = re.compile(r'[ \t]*(?:(W/)?"([^\x00-\x20"\x7f]*)"[ \t]*)?(?:,|\Z)')
"""A tag, or nothing, and the comma or the end after it. A byte that is not ASCII (`obs-text`) may
come as any character, also as half of a surrogate pair."""

_VERSION: Final = re.compile(r"0|[1-9][0-9]{0,18}")
"""The opaque part of a tag that `etag` can have made."""

_VERSIONS: Final = range(2**63)
"""What PostgreSQL's bigint can hold."""


class Tag(NamedTuple):
    """A tag of a request; `version` is None where no row can have it."""

    version: int | None
    weak: bool


def etag(version: int) -> str:
    """Return the strong entity tag of a row's version: `"7"` with its quotes."""
    return f'"{version}"'


def read_tags(value: str) -> list[Tag]:
    """Read a list of entity tags. Raises ValueError for other text and for an empty list."""
    tags, position = [], 0
    while position < len(value):
        found = _TAG.match(value, position)
        if found is None:
            raise ValueError("not a list of entity tags")
        if found[2] is not None:
            tags.append(Tag(_version(found[2]), weak=found[1] is not None))
        position = found.end()
    if not tags:
        raise ValueError("an empty list of entity tags")
    return tags


def _version(text: str) -> int | None:
    if not _VERSION.fullmatch(text):
        return None
    version = int(text)
    return version if version in _VERSIONS else None
