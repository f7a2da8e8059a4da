"""The table of keys, as the secret has it.

    {"keys": {"web": {"hash": "<SHA-256 of the secret, hexadecimal>", "role": "reader",
                      "created": "2026-12-01T12:00:00+00:00"}}}

Messages never quote what may be a secret: they show a value only if it is as short as an id.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from .callers import CALLER_ROLE, Caller, KeyLimits, StageRules
from .statements import Registered

LONGEST_ID: Final = 32
"""Most characters of a key's id. A secret has 43, so it is never mistaken for an id."""

_ID_CHARACTERS: Final = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
)
_FIELDS: Final = frozenset(
    ("hash", "role", "database", "limits", "statements", "retries", "expires", "note", "created")
)
_NOTHING: Final = hashlib.sha256(b"").digest()
"""The hash of an empty secret: a shell writes it when its variable is not set."""

MOST_NAMES: Final = 5
"""Names of statements that one message shows."""

DIGEST_SIZE: Final = len(_NOTHING)
"""Bytes of a hash."""


RESTORE: Final = "restore the secret's previous version (docs/operations.md)"


class TableError(ValueError):
    """The whole table cannot be read; the message has no part of it."""


class Entry(NamedTuple):
    """One key that can be used."""

    digest: bytes
    expires: float
    """Seconds since 1970, or infinity."""
    caller: Caller


class KeyTable(NamedTuple):
    """The keys that can be used, and what is wrong with the others."""

    entries: Mapping[str, Entry]
    problems: tuple[str, ...]


def read_table(text: str, rules: StageRules) -> KeyTable:
    """Read the secret's text. Raises TableError."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):  # their arguments hold the text
        raise TableError(f"the table of keys is not JSON: {RESTORE}") from None
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, dict):
        raise TableError(f'the table of keys has no object "keys": {RESTORE}')
    entries, problems = {}, []
    for key_id, fields in keys.items():
        wrong = list(_problems(key_id, fields, rules))
        problems += [f"{_name(key_id)} cannot be used: {problem}" for problem in wrong]
        if not wrong:
            entries[key_id] = _entry(key_id, fields, rules)
            problems += _gone(key_id, fields, rules)
    return KeyTable(entries, tuple(problems))


def _name(key_id: str) -> str:
    return f"key {key_id}" if is_key_id(key_id) else "a key"


def is_key_id(text: str) -> bool:
    """Tell whether a text can be the id of a key."""
    return 0 < len(text) <= LONGEST_ID and set(text) <= _ID_CHARACTERS


def _shown(value: object) -> str:
    """Show a value that is as short as an id or empty; of any other only its type."""
    is_short = isinstance(value, str) and (not value or is_key_id(value))
    return repr(value) if is_short else f"a value of type {type(value).__name__}, not shown here"


def _entry(key_id: str, fields: Mapping[str, Any], rules: StageRules) -> Entry:
    expires = fields.get("expires")
    caller = Caller(
        key=key_id,
        role=fields["role"],
        limits=_limits(fields.get("limits", {}), rules.limits),
        statements=_statements(fields.get("statements"), rules.statements),
        retries=fields.get("retries", False),
    )
    return Entry(
        bytes.fromhex(fields["hash"]),
        math.inf if expires is None else datetime.fromisoformat(expires).timestamp(),
        caller,
    )


def _limits(given: Mapping[str, int], stage: KeyLimits) -> KeyLimits:
    """Return a key's limits: where it names none, or a higher one, the stage's."""
    limits = (min(given.get(name, most), most) for name, most in stage._asdict().items())
    return KeyLimits(*limits)


def _statements(given: bool | list[str] | None, registered: Registered) -> Registered | None:
    """Return the registered statements of a key: all for true, None where the key has no list."""
    if given is None:
        return None
    return registered if given is True else registered.only(given or ())


def _gone(key_id: str, fields: Mapping[str, Any], rules: StageRules) -> Iterator[str]:
    """Report statements of a key that the stage's file does not have: the key stays valid."""
    given = fields.get("statements")
    if isinstance(given, list) and (missing := rules.statements.missing(given)):
        names = ", ".join(map(_shown, missing[:MOST_NAMES]))
        yield (
            f"key {key_id} names statements that the file of sql.statements does not have"
            f" ({names}): add them to the file, or create another key"
        )


def _problems(key_id: str, fields: object, rules: StageRules) -> Iterator[str]:
    """Yield what is wrong with an entry: a key with any mistake is refused."""
    if not is_key_id(key_id):
        yield f"its id must be 1 to {LONGEST_ID} letters, digits, _ and -"
    if not isinstance(fields, dict):
        yield f"it is {_shown(fields)}; must be an object"
        return
    if unknown := fields.keys() - _FIELDS:
        yield f"it has unknown fields ({len(unknown)}); may have {', '.join(sorted(_FIELDS))}"
    yield from _hash_problems(fields.get("hash"))
    yield from _role_problems(fields, rules)
    yield from _limit_problems(fields.get("limits", {}))
    yield from _expiry_problems(fields.get("expires"))


def _hash_problems(value: object) -> Iterator[str]:
    try:
        digest = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        digest = b""
    if len(digest) != DIGEST_SIZE:
        yield "its hash must be the SHA-256 of the secret, as 64 hexadecimal digits"
    elif digest == _NOTHING:
        yield "its hash is that of an empty text; must be the SHA-256 of the secret"


def _role_problems(fields: Mapping[str, Any], rules: StageRules) -> Iterator[str]:
    role, database = fields.get("role"), fields.get("database", rules.database)
    statements, retries = fields.get("statements"), fields.get("retries", False)
    if not isinstance(role, str) or role not in rules.roles:
        yield f"its role is {_shown(role)}; must be one of {', '.join(sorted(rules.roles))}"
    if database != rules.database:
        yield f"its database is {_shown(database)}; must be {rules.database}"
    if not (statements is None or statements is True or _is_texts(statements)):
        yield "its statements must be a list of names, or true for all"
    elif statements is None and role == CALLER_ROLE:
        yield f"a key of {CALLER_ROLE} needs statements: a list of names, or true for all"
    if not isinstance(retries, bool):
        yield "its retries must be true or false"


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _limit_problems(limits: object) -> Iterator[str]:
    if not isinstance(limits, dict) or not limits.keys() <= set(KeyLimits._fields):
        yield f"its limits must be an object with {', '.join(KeyLimits._fields)}"
        return
    for name, value in limits.items():
        if type(value) is not int or value <= 0:
            yield f"its limit {name} is {_shown_number(value)}; must be a whole number above 0"


def _shown_number(value: object) -> str:
    return str(value) if type(value) is int else _shown(value)


def _expiry_problems(expires: object) -> Iterator[str]:
    try:
        moment = datetime.fromisoformat(expires) if isinstance(expires, str) else None
    except ValueError:
        moment = None
    if expires is not None and (moment is None or moment.tzinfo is None):
        yield "its expires must be a time with a zone, as in 2027-01-31T00:00:00+00:00"
