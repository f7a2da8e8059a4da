"""Results as JSON text: fields, rows, command."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from json.encoder import encode_basestring

from lambda_pg.text import Field, Result

from .kinds import Kind, Type, kind_of, quoted

_encode: Callable[[object], str] = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), check_circular=False
).encode


FEW = 10
"""Rows that are written one by one; to set up json's encoder takes longer than they do."""


def render(
    result: Result, *, arrays: bool, raw: bool, known: Mapping[int, Type] | None = None
) -> str:
    """Write one result; `known` are the types that psycopg does not know."""
    fields, rows, tag = result
    described = _known_fields(fields) if len(fields) <= REMEMBERED_FIELDS else _written(fields)
    if raw and arrays:
        written = f"[{','.join(map(_array, rows))}]" if len(rows) <= FEW else _encode(rows)
    else:
        written = _rows(result, arrays, raw, known or {})
    return f'{{"fields":{described},"rows":{written},{_end(tag, arrays)}}}'


@lru_cache(200)
def _end(tag: str, arrays: bool) -> str:
    """Write what a command tag says."""
    command, _, rest = tag.partition(" ")
    count = rest.rpartition(" ")[2]
    return (
        f'"command":{quoted(command)},"rowCount":{count if count.isdigit() else "null"},'
        f'"rowAsArray":{"true" if arrays else "false"}'
    )


def bytes_of_names(result: Result) -> int:
    """Return the bytes that the columns' names take if each row is an object."""
    return len(result.rows) * sum(len(field.name.encode()) for field in result.fields)


def _written(fields: tuple[Field, ...]) -> str:
    return _encode(
        [
            {
                "name": field.name,
                "dataTypeID": field.type_oid,
                "tableID": field.table_oid,
                "columnID": field.column,
                "dataTypeSize": field.size,
                "dataTypeModifier": field.modifier,
                "format": "text",
            }
            for field in fields
        ]
    )


REMEMBERED_FIELDS = 32
"""Fields of an answer up to which their text is kept: of 1,664 it has 300 KB."""

_known_fields = lru_cache(200)(_written)


def _rows(result: Result, arrays: bool, raw: bool, known: Mapping[int, Type]) -> str:
    """Write the rows column by column."""
    rows, fields = result.rows, result.fields
    if not rows:
        return "[]"
    kinds = [quoted if raw else kind_of(field.type_oid, known) for field in fields]
    columns = list(map(_column, kinds, zip(*rows, strict=True)))
    if arrays:
        return _joined("[", columns, "]", len(rows))
    names = [field.name for field in fields]
    last = dict(zip(names, columns, strict=True))  # of one name's columns, as node-postgres does
    named = [_named(name, column) for name, column in last.items()]
    return _joined("{", named, "}", len(rows))


def _array(row: Sequence[str | None]) -> str:
    texts = ["null" if value is None else encode_basestring(value) for value in row]
    return f"[{','.join(texts)}]"


def _joined(opening: str, columns: list[list[str]], closing: str, count: int) -> str:
    """Join the values of each row, and the rows."""
    rows = map(",".join, zip(*columns, strict=True)) if columns else [""] * count
    return f"[{opening}{f'{closing},{opening}'.join(rows)}{closing}]"


def _column(kind: Kind, values: Sequence[str | None]) -> list[str]:
    if kind is quoted:
        kind = encode_basestring  # a call less for each value
    return ["null" if value is None else kind(value) for value in values]


def _named(name: str, column: list[str]) -> list[str]:
    prefix = f"{quoted(name)}:"
    return [prefix + value for value in column]
