"""What a statement does to its session, read from its text.

Through a pooler the next client gets the session. This is not a parser: comments and literals are
stripped, and the first words and the calls of the rest are inspected. What a function or a DO block
does inside cannot be seen.
"""

import functools
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from lambda_pg._profiles import Profile

PINNING_SIZE: Final = 16 * 1024
"""Bytes of a statement above which RDS Proxy pins (AWS documentation)."""

_REMEMBERED_SIZE: Final = 8 * 1024
"""Bytes of memory up to which a statement is cached: long ones are rarely sent twice."""

_ATOMIC: Final = frozenset(
    {"select", "insert", "update", "delete", "merge", "with", "values", "table"}
)
"""Statements that cannot commit a part of their work: CALL, DO and much of DDL can."""

_SUSPECT: Final = (
    *("set", "discard", "listen", "load", "prepare", "execute", "deallocate", "declare"),
    *("temp", "currval", "lastval", "nextval", "advisory"),
)
"""Without any of these words a statement has no effect, and need not be split into tokens."""

_SUSPECT_ALONE: Final = ("local", "transaction", "constraints", "set_config", "temp")
"""Without any of these words a statement sets nothing that ends with its transaction."""

_LEXEME: Final = r"""(?xs)
      (?P<nothing> \s+ | --[^\r\n]* )
    | (?P<comment> /\* )
    | (?P<text>
          [eE]'(?: [^'\\]++ | '' | \\(?:.|\Z) )*+ (?:'|\Z)
        | (?: [bBnNxX] | [uU]& )?' (?: [^']++ | '' )*+ (?:'|\Z)
        | (?P<tag>
              \$ (?:[^\x00-\x40\x5b-\x5e\x60\x7b-\x7f]
                  [^\x00-\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f]* )? \$
          )
          .*? (?: (?P=tag) | \Z )
      )
    | (?P<quoted> " (?: [^"]++ | "" )*+ (?:"|\Z) )
    | (?P<word>
          [^\x00-\x40\x5b-\x5e\x60\x7b-\x7f]
          [^\x00-\x23\x25-\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f]*
      )
    | (?P<number> \$?[0-9][0-9A-Za-z_.]* )
    | (?P<sign> . )
    """
"""Not compiled: a cold start that sets nothing does not pay for it. Words are letters, digits, _, $
and all that is not ASCII; what they are not is said instead: re compiles it in a tenth of the time.
"""
_COMMENT_MARK: Final = r"/\*|\*/"
_END: Final = r"(?i)(?:\A|[;\n\r]|\*/)[^\S\n\r]*(?:commit|end|abort|rollback|prepare)\b"
"""Without a match nothing ends a transaction: most statements need not be split into tokens. Each
blank is looked at once: many empty lines take no longer than other text."""

_LEADING: Final = {
    name: name.upper()
    for name in ("reset", "discard", "listen", "unlisten", "load", "execute", "deallocate")
}
_LOCAL_SETS: Final = frozenset({"local", "transaction", "constraints"})
_NO_CALLS: Final = frozenset({"alter", "comment", "drop", "grant", "revoke"})
"""Statements in which a function's name and parentheses are not a call."""

_ADVISORY: Final = r"pg_(?:try_)?advisory_(?:lock|lock_shared|unlock\w*)"
_TEMPORARY: Final = frozenset({"temp", "temporary"})
_CREATE_NOISE: Final = frozenset({"or", "replace", "global", "local", "unlogged", "recursive"})


def session_effect(query: str) -> str | None:
    """Name what in a statement sets or needs session state, or return None.

    A value that ends with its transaction does not count: SET LOCAL, set_config(…, true),
    pg_advisory_xact_lock, a temporary table ON COMMIT DROP.
    """
    return (_remembered(query) if is_short(query) else _look_at(query))[0]


def refusal(
    query: str, profile: Profile, *, prepare: bool = False, named_cursor: bool = False
) -> str | None:
    """Return why a statement would pin or leak at this profile's endpoint, or None.

    `prepare` is psycopg's argument of that name; `named_cursor` means that the query is declared
    as a cursor on the server.
    """
    if profile.session:
        return None
    if prepare and not profile.prepared:
        return f"a prepared statement {_consequence(profile)}: leave out prepare=True"
    effect, only_rds_proxy = _remembered(query) if is_short(query) else _look_at(query)
    if effect is None and profile.name == "rds-proxy":
        effect = _pins(query, only_rds_proxy, named_cursor=named_cursor)
    if effect is None:
        return None
    return f"{effect} {_consequence(profile)}: docs/pooling.md says what to do instead"


def refusal_alone(query: str) -> str | None:
    """Return why a query has no effect as a transaction by itself, or None."""
    lowered = query.lower()
    if not any(part in lowered for part in _SUSPECT_ALONE):
        return None
    effects = [_transaction_effect(statement) for statement in _statements(query)]
    if not effects or not all(effects):
        return None
    return (
        f"{effects[0]} outside of a transaction does nothing, as it ends with its statement: use "
        "transaction() or run_transaction(), and for claims claims=; docs/pooling.md has the list"
    )


def is_short(query: str) -> bool:
    """Tell whether a statement may be cached."""
    return sys.getsizeof(query) <= _REMEMBERED_SIZE


def is_undone_by_error(query: str) -> bool:
    """Tell whether an error of this query certainly undoes all that it did in autocommit."""
    return all(statement[0] in _ATOMIC for statement in _statements(query))


def ends_transaction(query: str) -> bool:
    """Tell whether a statement would end the transaction that it runs in, not a savepoint's."""
    return re.search(_END, query) is not None and any(map(_ends, _statements(query)))


def first_words(query: str) -> list[str]:
    """Return the first words of a query in lower case, three at most."""
    return list(islice((piece for piece in _tokens(query) if piece not in {"(", ";"}), 3))


def _ends(tokens: Sequence[str]) -> bool:
    if tokens[0] == "prepare":
        return tokens[1:2] == ["transaction"]
    return tokens[0] in {"commit", "end", "abort", "rollback"} and "to" not in tokens[1:3]


def _consequence(profile: Profile) -> str:
    if profile.name == "rds-proxy":
        return "pins a server connection of RDS Proxy until this client leaves"
    return (
        f"needs its own session, and in the profile {profile.name} the next statement may "
        "run on another server connection, and another client on this one"
    )


def _pins(query: str, found: str | None, *, named_cursor: bool) -> str | None:
    if len(query) * 4 > PINNING_SIZE and len(query.encode(errors="replace")) > PINNING_SIZE:
        return "a statement of more than 16 KB"
    return "a cursor" if named_cursor else found


def _look_at(query: str) -> tuple[str | None, str | None]:
    """Return the effect on any session, and the reason to pin of RDS Proxy alone."""
    lowered = query.lower()
    if not any(part in lowered for part in _SUSPECT):
        return None, None
    only_rds_proxy = None
    for statement in _statements(query):
        effect = _effect(statement)
        if effect is not None:
            return effect, None
        only_rds_proxy = only_rds_proxy or _proxy_effect(statement)
    return None, only_rds_proxy


_remembered: Final = functools.lru_cache(maxsize=512)(_look_at)


def _effect(tokens: Sequence[str]) -> str | None:
    first = tokens[0]
    if first in _LEADING:
        return _LEADING[first]
    rest = tokens[1:]
    match first:
        case "set":
            return "SET" if rest and rest[0] not in _LOCAL_SETS else None
        case "prepare":
            return "PREPARE" if rest[:1] != ["transaction"] else None
        case "declare":
            return "a cursor WITH HOLD" if _follow(tokens, "with", "hold") else _calls(tokens)
        case "create":
            return _created(tokens)
        case _:
            return _selected_into(tokens) or _calls(tokens)


def _proxy_effect(tokens: Sequence[str]) -> str | None:
    if tokens[0] == "declare":
        return "a cursor"
    if tokens[0] == "create":
        return _temporary(tokens)
    return "a call of nextval or setval" if {"nextval", "setval"} & set(_called(tokens)) else None


def _created(tokens: Sequence[str]) -> str | None:
    what = _temporary(tokens)
    if what is not None:
        return None if _follow(tokens, "on", "commit", "drop") else what
    return None if {"function", "procedure"} & set(tokens[:4]) else _calls(tokens)


def _temporary(tokens: Sequence[str]) -> str | None:
    """Name the temporary object that a CREATE makes, or return None."""
    place = 1
    temporary = False
    while place < len(tokens) and tokens[place] in _TEMPORARY | _CREATE_NOISE:
        temporary = temporary or tokens[place] in _TEMPORARY
        place += 1
    if place == len(tokens):
        return None
    name = tokens[place + 1 :]
    if name[:3] == ["if", "not", "exists"]:
        name = name[3:]
    if temporary or [piece.strip('"') for piece in name[:2]] == ["pg_temp", "."]:
        kind = tokens[place]
        return f"a temporary {kind if kind in {'table', 'view', 'sequence'} else 'object'}"
    return None


def _selected_into(tokens: Sequence[str]) -> str | None:
    """Find SELECT … INTO TEMP …, but not INSERT INTO temp …."""
    for place in range(1, len(tokens) - 1):
        if (
            tokens[place] == "into"
            and tokens[place + 1] in _TEMPORARY
            and tokens[place - 1] not in {"insert", "merge"}
        ):
            return "a temporary table"
    return None


def _calls(tokens: Sequence[str]) -> str | None:
    """Find a call of a function that reads or writes state of the session."""
    if tokens[0] in _NO_CALLS:
        return None
    for place in _call_places(tokens):
        name = tokens[place].strip('"')
        if name == "set_config":
            effect = _set_config(_arguments(tokens, place + 1))
            if effect is not None:
                return effect
        elif name in {"currval", "lastval"}:
            return f"{name}()"
        elif re.fullmatch(_ADVISORY, name):
            return "a session advisory lock"
    return None


def _set_config(arguments: Sequence[Sequence[str]]) -> str | None:
    named = [argument[3:] for argument in arguments if argument[:1] == ["is_local"]]
    is_local = named[0] if named else arguments[2] if len(arguments) == 3 else []
    if is_local == ["true"]:
        return None
    return "set_config(…, false)" if is_local == ["false"] else "set_config(…) that may be lasting"


def _transaction_effect(tokens: Sequence[str]) -> str | None:
    """Name what a statement sets for the rest of its transaction, if it does nothing else."""
    match tokens[0]:
        case "set":
            is_local = tokens[1:2] and tokens[1] in _LOCAL_SETS
            return f"SET {tokens[1].upper()}" if is_local else None
        case "create":
            is_dropped = _temporary(tokens) and _follow(tokens, "on", "commit", "drop")
            return "a temporary table ON COMMIT DROP" if is_dropped else None
        case "select":
            only_sets = all(map(_is_set_config, _arguments(["(", *tokens[1:]], 0)))
            return "set_config(…, true)" if only_sets and _calls(tokens) is None else None
        case _:
            return None


def _is_set_config(item: Sequence[str]) -> bool:
    """Tell whether an item of a SELECT is one call of set_config, with or without a name."""
    names = [piece.strip('"') for piece in item]
    start = 2 if names[:2] == ["pg_catalog", "."] else 0
    if names[start : start + 2] != ["set_config", "("]:
        return False
    depth = 0
    for place in range(start + 1, len(item)):
        depth += (item[place] == "(") - (item[place] == ")")
        if depth == 0:
            rest = item[place + 1 :]
            return len(rest) <= 1 or (len(rest) == 2 and rest[0] == "as")
    return False


def _called(tokens: Sequence[str]) -> Iterator[str]:
    return (tokens[place].strip('"') for place in _call_places(tokens))


def _call_places(tokens: Sequence[str]) -> Iterator[int]:
    """Yield the places of names before parentheses, in pg_catalog or without a schema."""
    for place in range(len(tokens) - 1):
        if tokens[place + 1] == "(" and len(tokens[place]) > 1:
            qualified = place >= 2 and tokens[place - 1] == "."
            if not qualified or tokens[place - 2].strip('"') == "pg_catalog":
                yield place


def _arguments(tokens: Sequence[str], opening: int) -> list[list[str]]:
    """Split the text between two parentheses at its commas."""
    arguments: list[list[str]] = [[]]
    depth = 0
    for piece in tokens[opening:]:
        depth += (piece == "(") - (piece == ")")
        if depth == 0:
            break
        if depth == 1 and piece == ",":
            arguments.append([])
        elif depth > 1 or piece != "(":
            arguments[-1].append(piece)
    return arguments


def _follow(tokens: Sequence[str], *words: str) -> bool:
    size = len(words)
    return any(
        tuple(tokens[place : place + size]) == words for place in range(len(tokens) - size + 1)
    )


def _statements(query: str) -> Iterator[list[str]]:
    """Split at semicolons; a function's BEGIN ATOMIC ends what can be seen."""
    pieces: list[str] = []
    for piece in _tokens(query):
        if piece == "atomic" and pieces[-1:] == ["begin"]:
            break
        if piece == ";":
            yield from _started(pieces)
            pieces = []
        else:
            pieces.append(piece)
    yield from _started(pieces)


def _started(tokens: list[str]) -> Iterator[list[str]]:
    """Leave out parentheses and EXPLAIN before the statement."""
    place = 0
    while place < len(tokens) and tokens[place] == "(":
        place += 1
    if tokens[place : place + 1] == ["explain"]:
        place += 1
        if tokens[place : place + 1] == ["("]:
            place = tokens.index(")", place) + 1 if ")" in tokens[place:] else len(tokens)
        while tokens[place : place + 1] in (["analyze"], ["analyse"], ["verbose"]):
            place += 1
    if place < len(tokens):
        yield tokens[place:]


def lexemes(query: str) -> Iterator[tuple[str, str]]:
    """Yield the kind of each piece and its text: a word, quoted, a number, a sign, text, nothing.

    Text is a literal in quotes; nothing is white space or a comment. An unfinished literal or
    comment reaches to the end.
    """
    place = 0
    lexeme = re.compile(_LEXEME)
    while match := lexeme.match(query, place):
        place, kind = match.end(), match.lastgroup or ""
        if kind == "comment":
            kind, place = "nothing", _after_comment(query, place)
        yield kind, query[match.start() : place]


def _tokens(query: str) -> Iterator[str]:
    """Yield words in lower case, quoted names with their quotes, signs, and ' for each literal."""
    for kind, piece in lexemes(query):
        if kind == "word":
            yield piece.lower()
        elif kind == "text":
            yield "'"
        elif kind != "nothing":
            yield piece


def _after_comment(query: str, place: int) -> int:
    """Find the end of a comment; comments nest."""
    depth = 1
    marks = re.compile(_COMMENT_MARK)
    while depth and (mark := marks.search(query, place)):
        depth += 1 if mark[0] == "/*" else -1
        place = mark.end()
    return len(query) if depth else place
