"""Registered statements: exact texts, known by their SHA-256.

The file is one JSON object:

    {"orders-by-user": {"sql": "SELECT …", "reads": true}, "touch": "UPDATE …"}

A text is compared as it is: one more space makes another statement.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

_FIELDS: Final = {"sql", "reads"}
_SETTERS: Final = ("set_config", "pg_settings")
"""With these names a statement can change a setting that its parameters name."""


class StatementsError(ValueError):
    """The file of registered statements cannot be used; the message has every problem."""


class Statement(NamedTuple):
    """One registered text, by its digest."""

    digest: str
    reads: bool
    """Whether it only reads, so that it may be retried after a lost connection."""
    sets: bool
    """Whether it may change any setting, including the claims."""


def digest(query: str) -> str:
    """Return the SHA-256 of a statement's text, in hexadecimal digits."""
    return _known_digest(query) if len(query) <= REMEMBERED_LENGTH else _digest(query)


def digests(queries: Sequence[str]) -> list[str]:
    """Return the SHA-256 of each text."""
    return [
        _known_digest(query) if len(query) <= REMEMBERED_LENGTH else _digest(query)
        for query in queries
    ]


def _digest(query: str) -> str:
    return hashlib.sha256(query.encode("utf-8", "surrogatepass")).hexdigest()


REMEMBERED_LENGTH: Final = 2000
"""Characters of the texts whose digests are kept."""

_known_digest: Final = lru_cache(maxsize=512)(_digest)
"""A client's statements repeat, in a batch most of all."""


class Registered:
    """The statements that a caller may send."""

    def __init__(self, statements: Mapping[str, Statement]) -> None:
        """Take the statements by their names."""
        self._named = dict(statements)
        self._known = {each.digest: each for each in statements.values()}

    def allows(self, query: str) -> bool:
        """Tell whether this text is registered."""
        return digest(query) in self._known

    def reads_all(self, queries: Iterable[str]) -> bool:
        """Tell whether each of these texts is registered as one that only reads."""
        return bool(self._known) and all(map(self.reads, queries))

    def reads(self, query: str) -> bool:
        """Tell whether this text is registered as one that only reads."""
        found = self._known.get(digest(query))
        return found is not None and found.reads

    def missing(self, names: Collection[str]) -> list[str]:
        """List the names that no statement has."""
        return [name for name in names if name not in self._named]

    def only(self, names: Collection[str]) -> Self:
        """Return the statements of these names; a name that no statement has adds none."""
        return type(self)({name: self._named[name] for name in names if name in self._named})

    def for_tokens(self) -> Self:
        """Return the statements that cannot set claims, whatever their parameters are."""
        return type(self)({name: each for name, each in self._named.items() if not each.sets})


NONE: Final = Registered({})
"""No statement."""


def load_statements(path: Path) -> Registered:
    """Read the stage's file. Raises StatementsError, and OSError."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise StatementsError(f"{path} is not UTF-8: {error.reason}") from error
    return read_statements(text, str(path))


def read_statements(text: str, source: str) -> Registered:
    """Read the text of a file; `source` names it in messages. Raises StatementsError."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StatementsError(f"{source} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise StatementsError(
            f"{source} is a JSON {type(document).__name__}; must be an object of names and texts"
        )
    if problems := list(_problems(document)):
        raise StatementsError(f"{source}: {'; '.join(problems)}")
    return Registered({name: _statement(entry) for name, entry in document.items()})


def _problems(document: Mapping[str, Any]) -> Iterator[str]:
    first: dict[str, str] = {}
    for name, entry in document.items():
        if problem := _problem(entry):
            yield f"statement {name!r} {problem}"
            continue
        other = first.setdefault(_statement(entry).digest, name)
        if _statement(entry).reads != _statement(document[other]).reads:
            yield (
                f"statements {other!r} and {name!r} have the same text, but only one has"
                " reads true: remove one of them"
            )


def _problem(entry: object) -> str:
    fields = _fields(entry)
    sql, reads = fields.get("sql"), fields.get("reads", False)
    if not fields.keys() <= _FIELDS:
        return f"has the unknown fields {sorted(fields.keys() - _FIELDS)}; may have sql and reads"
    if not isinstance(sql, str) or not sql.strip():
        return "has no text in its field 'sql'; must have an SQL statement"
    if not isinstance(reads, bool):
        return f"has reads {reads!r}; must be true or false"
    return ""


def _fields(entry: object) -> dict[str, Any]:
    """Return the fields of an entry; a text alone is its SQL."""
    return entry if isinstance(entry, dict) else {"sql": entry}


def _statement(entry: object) -> Statement:
    fields = _fields(entry)
    sql: str = fields["sql"]
    sets = any(name in sql.lower() for name in _SETTERS)
    return Statement(digest(sql), fields.get("reads", False), sets)
