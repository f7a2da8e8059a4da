"""Foreign statements: untyped text in, untyped text out, and no session state that remains.

`Database.run_text` takes and returns these values. Nothing else imports this module, so a cold
start that does not need it does not pay for it.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import psycopg

VALUE_BYTES: Final = 4
"""Bytes that each value counts in addition to its text, about what quotes and a comma take in JSON.
Without them a row of NULLs would count nothing."""

FIELD_BYTES: Final = 128
"""Bytes that each column counts in addition to its name, about its description's size in JSON."""


class Statement(NamedTuple):
    """One SQL statement and its parameters, which are sent as text without a type."""

    query: str
    params: Sequence[str | None] = ()


class Field(NamedTuple):
    """The description of a column, as PostgreSQL sends it."""

    name: str
    type_oid: int
    table_oid: int
    column: int
    size: int
    modifier: int


class Result(NamedTuple):
    """The result of one statement; `tag` is the command tag, "" for an empty query."""

    fields: tuple[Field, ...]
    rows: list[tuple[str | None, ...]]
    tag: str


class Limits(NamedTuple):
    """The limits for all results of one call together.

    `bytes` are those of the values and the column names, plus 4 for each value and 128 for each
    column. They are counted while rows arrive.
    """

    rows: int
    bytes: int


class TooLargeError(psycopg.DataError):
    """Report results that are larger than the limits.

    `committed` says whether the statements were committed before they could be cancelled; None if
    that is not known, as with a profile that cannot cancel.
    """

    sqlstate = "54000"

    def __init__(self, message: str, *, committed: bool | None) -> None:
        """Take a message without values."""
        super().__init__(message)
        self.committed = committed


class CopyRefusedError(psycopg.errors.FeatureNotSupported):
    """Report a COPY: there is no way to pass its data."""
