"""Results of `/sql` as JSON: fields, rows, commands, raw and not raw."""

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lambda_pg.text import Field, Result
from psycopg.postgres import types

from lambda_pg_cdk.functions.sql.sql_http import kinds
from lambda_pg_cdk.functions.sql.sql_http.results import REMEMBERED_FIELDS, _fields, render

TEXT, INT8, INT4, JSON, BOX = 25, 20, 23, 114, 603


def field(name: str = "a", oid: int = TEXT) -> Field:
    """Describe a column."""
    return Field(name, oid, 16384, 1, -1, -1)


def rendered(result: Result, *, arrays: bool = True, raw: bool = True) -> Any:
    """Render a result and read it as a client does."""
    return json.loads(render(result, arrays=arrays, raw=raw))


def value(text: str | None, oid: int, known: Mapping[int, kinds.Type] | None = None) -> Any:
    """Render one value that is not raw."""
    result = Result((field(oid=oid),), [(text,)], "SELECT 1")
    return json.loads(render(result, arrays=True, raw=False, known=known))["rows"][0][0]


@pytest.mark.parametrize(
    ("tag", "command", "count"),
    [
        ("SELECT 3", "SELECT", 3),
        ("INSERT 0 7", "INSERT", 7),
        ("UPDATE 0", "UPDATE", 0),
        ("MERGE 2", "MERGE", 2),
        ("CREATE TABLE", "CREATE", None),
        ("SET", "SET", None),
        ("", "", None),
    ],
)
def test_command_and_row_count(tag: str, command: str, count: int | None) -> None:
    """They come from the command tag; an empty query has none."""
    assert rendered(Result((), [], tag)) == {
        "fields": [],
        "rows": [],
        "command": command,
        "rowCount": count,
        "rowAsArray": True,
    }


def test_fields_have_the_names_of_node_postgres() -> None:
    """Names and numbers are those that clients compare."""
    result = Result((Field('a"é', 23, 16384, 2, 4, -1),), [], "SELECT 0")
    assert rendered(result)["fields"] == [
        {
            "name": 'a"é',
            "dataTypeID": 23,
            "tableID": 16384,
            "columnID": 2,
            "dataTypeSize": 4,
            "dataTypeModifier": -1,
            "format": "text",
        }
    ]


def test_the_fields_of_wide_answers_are_not_kept() -> None:
    """200 of 1,664 columns with long names took 130 MB."""
    _fields.cache_clear()
    for width in (REMEMBERED_FIELDS, REMEMBERED_FIELDS + 1):
        fields = tuple(Field(f"c{number}", 25, 0, 0, -1, -1) for number in range(width))
        body = json.loads(render(Result(fields, [], "SELECT 0"), arrays=True, raw=True))
        assert len(body["fields"]) == width
    assert _fields.cache_info().currsize == 1


@pytest.mark.parametrize("raw", [True, False])
def test_duplicate_names_survive_as_arrays(raw: bool) -> None:
    """As objects the last column of a name stays, as in node-postgres."""
    result = Result((field("a"), field("b"), field("a")), [("1", None, "2")] * 2, "SELECT 2")
    assert rendered(result, raw=raw)["rows"] == [["1", None, "2"]] * 2
    assert rendered(result, raw=raw, arrays=False)["rows"] == [{"a": "2", "b": None}] * 2


@pytest.mark.parametrize("raw", [True, False])
def test_rows_without_columns(raw: bool) -> None:
    """`SELECT FROM t` has rows."""
    result = Result((), [(), ()], "SELECT 2")
    assert rendered(result, raw=raw)["rows"] == [[], []]
    assert rendered(result, raw=raw, arrays=False)["rows"] == [{}, {}]


@given(st.lists(st.tuples(st.none() | st.text(), st.none() | st.text())), st.booleans())
def test_any_text_is_itself(rows: list[tuple[str | None, ...]], raw: bool) -> None:
    """Quotes, control characters and NULL come through, in rows of both forms."""
    result = Result((field("a"), field('b"')), rows, f"SELECT {len(rows)}")
    assert rendered(result, raw=raw)["rows"] == [list(row) for row in rows]
    objects = [{"a": first, 'b"': second} for first, second in rows]
    assert rendered(result, raw=raw, arrays=False)["rows"] == objects


@pytest.mark.parametrize(
    ("text", "type_name", "expected"),
    [
        ("t", "bool", True),
        ("f", "bool", False),
        ("-32768", "int2", -32768),
        ("2147483647", "int4", 2147483647),
        ("9223372036854775807", "int8", "9223372036854775807"),
        ("1.50", "numeric", "1.50"),
        ("0.1", "float4", 0.1),
        ("1e+300", "float8", 1e300),
        ("-0", "float8", -0.0),
        ("NaN", "float8", "NaN"),
        ("Infinity", "float4", "Infinity"),
        ("-Infinity", "float8", "-Infinity"),
        ('{"a": [1, "x"]}', "json", {"a": [1, "x"]}),
        ("[null]", "jsonb", [None]),
        ("2026-11-30", "date", "2026-11-30"),
        ("1 2", "int2vector", "1 2"),
        ("42", "oid", "42"),
        ("(1,2)", "record", "(1,2)"),
    ],
)
def test_values_that_are_not_raw(text: str, type_name: str, expected: object) -> None:
    """Booleans, small integers, floats and documents are JSON's; all others are strings."""
    info = types[type_name]
    assert value(text, info.oid) == expected
    assert value(None, info.oid) is None


def test_documents_keep_their_digits() -> None:
    """JSON is inlined as text: a parser would change numbers."""
    document = '{"a": 1.00000000000000000001, "a": 123456789012345678901234567890}'
    result = Result((field(oid=JSON),), [(document,)], "SELECT 1")
    assert document in render(result, arrays=True, raw=False)


@pytest.mark.parametrize(
    ("text", "type_name", "expected"),
    [
        ("{}", "int4", []),
        ("{1,NULL,-3}", "int4", [1, None, -3]),
        ("{{1,2},{3,4}}", "int4", [[1, 2], [3, 4]]),
        ("[0:1][-2:-2]={{1},{2}}", "int4", [[1], [2]]),
        ("{t,f}", "bool", [True, False]),
        ("{1e+20,NaN}", "float8", [1e20, "NaN"]),
        ("{9007199254740993}", "int8", ["9007199254740993"]),
        (
            '{"{\\"a\\": [1, {}]}",NULL,"\\"x\\\\\\\\y\\"","1"}',
            "jsonb",
            [{"a": [1, {}]}, None, "x\\y", 1],
        ),
        (
            '{a,"NULL","a,b","{}"," ","\\"","\\\\",""}',
            "text",
            ["a", "NULL", "a,b", "{}", " ", '"', "\\", ""],
        ),
        ("{(1,1),(0,0);(2,2),(1,1)}", "box", ["(1,1),(0,0)", "(2,2),(1,1)"]),
        ('{"[1,2)","(,)"}', "int4range", ["[1,2)", "(,)"]),
    ],
)
def test_arrays(text: str, type_name: str, expected: object) -> None:
    """They become JSON's, with all dimensions, by the type of their elements."""
    assert value(text, types[type_name].array_oid) == expected


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@given(
    st.recursive(st.text(), lambda inner: st.lists(inner, min_size=1)).filter(
        lambda each: isinstance(each, list)
    )
)
def test_any_array_of_texts(nested: Any) -> None:
    """What array_out quotes is unquoted, in any dimension."""

    def literal(each: Any) -> str:
        return f"{{{','.join(map(literal, each))}}}" if isinstance(each, list) else _quoted(each)

    assert value(literal(nested), types["text"].array_oid) == nested


@given(st.floats())
def test_any_float(number: float) -> None:
    """A number stays one where JSON has it."""
    text = {math.inf: "Infinity", -math.inf: "-Infinity"}.get(
        number, str(number).replace("nan", "NaN")
    )
    assert value(text, types["float8"].oid) == (number if math.isfinite(number) else text)


COLOUR, COLOURS, SMALL, SMALLS, PAIRS, PAIR_LISTS = 90001, 90002, 90003, 90004, 90005, 90006
KNOWN = {
    COLOUR: kinds.Type(0, 0, ","),
    COLOURS: kinds.Type(COLOUR, 0, ","),
    SMALL: kinds.Type(0, INT4, ","),
    SMALLS: kinds.Type(SMALL, 0, ","),
    PAIRS: kinds.Type(0, types["int4"].array_oid, ","),
    PAIR_LISTS: kinds.Type(PAIRS, 0, ","),
}


@pytest.mark.parametrize(
    ("text", "oid", "expected"),
    [
        ("red", COLOUR, "red"),
        ('{red,"light blue"}', COLOURS, ["red", "light blue"]),
        ("{1,2}", SMALLS, [1, 2]),
        ('{"{1,2}","{3,4}"}', PAIR_LISTS, [[1, 2], [3, 4]]),
        ("{1,2}", 99999, "{1,2}"),
    ],
)
def test_types_of_users(text: str, oid: int, expected: object) -> None:
    """Arrays of enums and domains are arrays; a type that has been dropped is a string."""
    assert value(text, oid, KNOWN) == expected


def test_only_unknown_types_are_asked_for() -> None:
    """Those of PostgreSQL are known without a question."""
    result = Result((field(oid=INT4), field(oid=COLOURS), field(oid=99999)), [], "SELECT 0")
    assert kinds.unknown([result], KNOWN) == [99999]
    assert kinds.asking([7, 8]).params == ("{7,8}",)


def test_the_answer_about_types() -> None:
    """It is a row for each type."""
    rows: list[tuple[str | None, ...]] = [("90002", "90001", "0", ","), ("603", "0", "0", ";")]
    assert kinds.read_types(Result((), rows, "SELECT 2")) == {
        COLOURS: kinds.Type(COLOUR, 0, ","),
        BOX: kinds.Type(0, 0, ";"),
    }
