"""Values that are not raw: convert PostgreSQL's text of each type to JSON."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from json.encoder import encode_basestring
from typing import NamedTuple

from lambda_pg.text import Result, Statement
from psycopg.postgres import types as builtin

Kind = Callable[[str], str]
"""Turns PostgreSQL's text of a value that is not null into JSON's."""


class Type(NamedTuple):
    """What a row of pg_type says: 0 stands for no element, and for no base type."""

    element: int
    base: int
    delimiter: str


TYPES = Statement(
    "WITH RECURSIVE needed (oid) AS ("
    " SELECT unnest($1::pg_catalog.oid[])"
    " UNION SELECT unnest(ARRAY[typelem, typbasetype])"
    " FROM needed JOIN pg_catalog.pg_type USING (oid)"
    ") SELECT oid, CASE WHEN typoutput = 'pg_catalog.array_out'::pg_catalog.regproc"
    " THEN typelem ELSE 0 END, typbasetype, typdelim"
    " FROM needed JOIN pg_catalog.pg_type USING (oid)"
)
"""Asks for types, with their elements and base types; takes an array's literal of their ids."""


def quoted(text: str) -> str:
    """Write a JSON string."""
    return encode_basestring(text)


def inlined(text: str) -> str:
    """Keep what is JSON already: numbers with all digits, and documents."""
    return text


def boolean(text: str) -> str:
    """Write true or false."""
    return "true" if text == "t" else "false"


def floating(text: str) -> str:
    """Write a number, or a string for what JSON's numbers lack: NaN and infinities."""
    return f'"{text}"' if text[-1] in "Ny" else text


_SCALARS: Mapping[int, Kind] = {
    16: boolean,
    21: inlined,
    23: inlined,
    700: floating,
    701: floating,
    114: inlined,
    3802: inlined,
}
"""By type id: bool, int2, int4, float4, float8, json, jsonb. All others are strings."""


def unknown(results: Iterable[Result], known: Mapping[int, Type]) -> list[int]:
    """List the types of the fields that neither psycopg nor `known` has."""
    oids = {field.type_oid for result in results for field in result.fields}
    return sorted(oid for oid in oids - known.keys() if builtin.get(oid) is None)


def asking(oids: Iterable[int]) -> Statement:
    """Return the statement that asks for types."""
    return TYPES._replace(params=(f"{{{','.join(map(str, oids))}}}",))


def read_types(result: Result) -> dict[int, Type]:
    """Read the answer to `asking`."""
    return {
        int(oid or 0): Type(int(element or 0), int(base or 0), delimiter or ",")
        for oid, element, base, delimiter in result.rows
    }


def kind_of(oid: int, known: Mapping[int, Type]) -> Kind:
    """Return how values of a type are written; an unknown type is a string."""
    if oid in _SCALARS:
        return _SCALARS[oid]
    info = builtin.get(oid)
    if info is not None:
        is_array = oid == info.array_oid
        return array_of(kind_of(info.oid, known), info.delimiter) if is_array else quoted
    found = known.get(oid)
    if found is not None and found.base:
        return kind_of(found.base, known)
    if found is not None and found.element:
        return array_of(kind_of(found.element, known), found.delimiter)
    return quoted


@lru_cache(1000)
def array_of(element: Kind, delimiter: str) -> Kind:
    """Return how arrays of elements are written, with all of their dimensions."""
    token = re.compile(rf'"(?:[^"\\]++|\\.)*+"|[{{}}{delimiter}]|[^{{}}{delimiter}"]++', re.DOTALL)
    escaped = re.compile(r"\\(.)", re.DOTALL)
    signs = {"{": "[", "}": "]", delimiter: ",", "NULL": "null"}

    def translated(match: re.Match[str]) -> str:
        text = match.group()
        if text in signs:
            return signs[text]
        return element(escaped.sub(r"\1", text[1:-1]) if text[0] == '"' else text)

    def array(text: str) -> str:
        return token.sub(translated, text[text.index("{") :])  # [1:2]= may come first

    return array
