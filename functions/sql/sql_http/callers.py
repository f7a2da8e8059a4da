"""A caller: its trust level (`role`), and what it may send."""

from collections.abc import Mapping
from typing import NamedTuple

from .statements import Registered


class KeyLimits(NamedTuple):
    """The limits of one call. A key's limit is never above the stage's."""

    rows: int
    """Rows of all results together."""
    bytes: int
    """Bytes of the answer, after compression."""
    statements: int
    """Statements in a batch."""
    request_bytes: int
    """Bytes of the request's body."""


class Caller(NamedTuple):
    """Who calls: by a key, or by a token that the API's authorizer has verified."""

    key: str
    """The key's id, or `jwt`."""
    role: str
    limits: KeyLimits
    statements: Registered | None = None
    """The only statements that the caller may send; None allows any text."""
    retries: bool = False
    """Whether each call may be retried after a lost connection, writes too."""
    claims: Mapping[str, str] | None = None
    """The claims of a verified token, for row-level security."""


class StageRules(NamedTuple):
    """What a stage allows to its callers."""

    roles: frozenset[str]
    """The trust levels that the stage has: reader, writer, caller."""
    database: str
    """Name of the stage's database."""
    limits: KeyLimits
    statements: Registered
    """All statements of the stage's file; none without a file."""


CALLER_ROLE = "caller"
"""The trust level that runs registered statements only."""
