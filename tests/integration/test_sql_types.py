"""Every type of PostgreSQL through `/sql`, field by field as node-postgres has it over TCP."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.servers import DATABASE, Login, SecretsService, create_login
from tests.support.sql_server import Key, SqlServer, direct, sql_server

pytestmark = pytest.mark.once

NODE: Final = shutil.which("node") or "node"
NODE_MODULES: Final = PROJECT / "examples" / "typescript" / "node_modules"
PROGRAM: Final = PROJECT / "tests" / "support" / "node_postgres.mjs"
SCHEMA: Final = "kinds"

USER_TYPES: Final = """
CREATE SCHEMA kinds;
CREATE TYPE kinds.mood AS ENUM ('sad', 'so so', 'NULL', 'très "bien"', 'a,b', '{}', '\\');
CREATE TYPE kinds.pair AS (a int, b text, c int[], d kinds.mood);
CREATE TYPE kinds.float_range AS RANGE (
    subtype = float8, multirange_type_name = kinds.float_ranges
);
CREATE DOMAIN kinds.small AS int CHECK (VALUE < 100);
CREATE DOMAIN kinds.smaller AS kinds.small CHECK (VALUE < 10);
CREATE DOMAIN kinds.flag AS bool;
CREATE DOMAIN kinds.ratio AS float8;
CREATE DOMAIN kinds.label AS varchar(20);
CREATE DOMAIN kinds.amount AS numeric(10, 2);
CREATE DOMAIN kinds.document AS jsonb;
CREATE DOMAIN kinds.labels AS text[];
CREATE DOMAIN kinds.grid AS int[];
CREATE DOMAIN kinds.moods AS kinds.mood[];
CREATE DOMAIN kinds.couple AS kinds.pair;
CREATE TABLE kinds.modified (
    a varchar(10), b char(5), c numeric(10, 2), d bit(3), e varbit(8), f time(3), g timestamptz(0),
    h interval day to second(2), i varchar(10)[], j numeric(6, 1)[], k kinds.amount, l kinds.label
);
INSERT INTO kinds.modified VALUES (
    'x', 'y', 1.5, '101', '11', '12:00:00.1239', '2026-11-30 12:00:00+00', '1 day 00:00:01.239',
    '{a,b}', '{1,2.25}', 3, 'z'
);
INSERT INTO kinds.modified DEFAULT VALUES;
GRANT USAGE ON SCHEMA kinds TO PUBLIC;
GRANT SELECT ON kinds.modified TO PUBLIC;
"""

TEXTS: Final = (
    "",
    "NULL",
    "a",
    'é"ü\\n',
    "line\nend\t",
    "{a,b}",
    " ",
    "\U0001f418",
    "a,b;c",
    "\x01",
)
SAMPLES: Final[Mapping[str, Sequence[str]]] = {
    "bool": ("t", "f"),
    "bytea": ("", "\\xdeadbeef", "\\x00ff5c22"),
    "char": ("a", '"', ""),
    "name": ("a", "", 'quote"s'),
    "int8": ("9223372036854775807", "-9223372036854775808", "0"),
    "int2": ("32767", "-32768", "0"),
    "int2vector": ("1 2 3", ""),
    "int4": ("2147483647", "-2147483648", "0"),
    "regproc": ("pg_catalog.now", "-"),
    "text": TEXTS,
    "oid": ("4294967295", "0"),
    "tid": ("(1,2)",),
    "xid": ("42",),
    "cid": ("7",),
    "oidvector": ("1 2 3", ""),
    "json": ('{"a": [1, 2.50, null, "x"], "a": {}}', "[]", '"é\\n\\""', "true", " 1e3 ", "null"),
    "jsonb": ('{"a": [1, 2.50, null, "x"], "b": {}}', "[]", '"é\\n\\""', "true", "1e3", "null"),
    "jsonpath": ('$."a"[*] ? (@ > 1)',),
    "xml": ('<a b="c">é</a>',),
    "xid8": ("18446744073709551615",),
    "point": ("(1,2.5)", "(-0,Infinity)"),
    "lseg": ("[(1,2),(3,4)]",),
    "path": ("[(1,2),(3,4)]", "((1,2),(3,4))"),
    "box": ("(3,4),(1,2)",),
    "polygon": ("((1,2),(3,4),(5,6))",),
    "line": ("{1,2,3}",),
    "circle": ("<(1,2),3>",),
    "cidr": ("10.0.0.0/8", "2001:db8::/32"),
    "inet": ("10.0.0.1", "10.0.0.1/8", "::1"),
    "macaddr": ("08:00:2b:01:02:03",),
    "macaddr8": ("08:00:2b:01:02:03:04:05",),
    "float4": ("0.1", "3.4e+38", "NaN", "Infinity", "-Infinity", "-0", "16777216"),
    "float8": (
        "0.1",
        "1.7e+308",
        "5e-324",
        "NaN",
        "Infinity",
        "-Infinity",
        "-0",
        "9007199254740993",
    ),
    "money": ("$1,234.56", "-$0.01"),
    "aclitem": ("pg_monitor=r/pg_monitor",),
    "bpchar": ("a  ", *TEXTS),
    "varchar": TEXTS,
    "date": ("2026-11-30", "infinity", "-infinity", "0044-03-15 BC"),
    "time": ("12:34:56.789", "24:00:00"),
    "timetz": ("12:34:56.789+02",),
    "timestamp": ("2026-11-30 12:34:56.789012", "infinity", "0044-03-15 12:00:00 BC"),
    "timestamptz": ("2026-11-30 12:34:56.789012+05:30", "-infinity"),
    "interval": ("1 year 2 mons -3 days 04:05:06.7", "00:00:00"),
    "bit": ("1", "0"),
    "varbit": ("", "10101"),
    "numeric": ("0.00", "-1.50", "1e-20", "NaN", "Infinity", "9" * 60),
    "refcursor": ("c",),
    "regprocedure": ("now()",),
    "regoper": ("||/",),
    "regoperator": ("+(integer,integer)",),
    "regclass": ("pg_class", "kinds.modified"),
    "regcollation": ('"C"',),
    "regtype": ("integer", "kinds.mood[]"),
    "regrole": ("pg_monitor",),
    "regnamespace": ("pg_catalog",),
    "regconfig": ("english",),
    "regdictionary": ("simple",),
    "uuid": ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",),
    "pg_lsn": ("16/B374D848",),
    "tsvector": ("'a':1 'fat':2,4C", ""),
    "tsquery": ("'fat' & !'rat':*", ""),
    "txid_snapshot": ("10:20:10,14,15",),
    "pg_snapshot": ("10:20:10,14,15",),
    "int4range": ("[1,5)", "empty", "(,)"),
    "int8range": ("[1,9223372036854775807)",),
    "numrange": ("(1.5,2.50]",),
    "daterange": ("[2026-01-01,infinity)",),
    "tsrange": ('["2026-01-01 00:00:00",)',),
    "tstzrange": ('["2026-01-01 00:00:00+00","2026-01-02 00:00:00+00")',),
    "int4multirange": ("{[1,5),[7,9)}", "{}"),
    "int8multirange": ("{[1,5)}",),
    "nummultirange": ("{(1.5,2.50]}",),
    "datemultirange": ("{[2026-01-01,2026-01-05)}",),
    "tsmultirange": ('{["2026-01-01 00:00:00",)}',),
    "tstzmultirange": ('{["2026-01-01 00:00:00+00",)}',),
    "cardinal_number": ("0", "7"),
    "character_data": TEXTS,
    "sql_identifier": ("a", 'quote"s'),
    "time_stamp": ("2026-11-30 12:34:56.78+00",),
    "yes_or_no": ("YES", "NO"),
    "mood": ("sad", "so so", "NULL", 'très "bien"', "a,b", "{}", "\\"),
    "pair": ('(1,"a ""b"", c","{1,2}",sad)', "(,,,)", '(,"","{}","so so")'),
    "float_range": ("[1.5,2.5)",),
    "float_ranges": ("{[1.5,2.5),[3,)}",),
    "small": ("99", "-1"),
    "smaller": ("9",),
    "flag": ("t", "f"),
    "ratio": ("0.1", "NaN"),
    "label": ("a", "NULL"),
    "amount": ("1.5",),
    "document": ('{"a": 1}', "[1, null]"),
    "labels": ('{a,NULL,"NULL"}', "{}", "[2:3]={x,y}"),
    "grid": ("{{1,2},{3,NULL}}", "{}", "[0:1]={5,6}"),
    "moods": ('{sad,"so so",NULL}',),
    "couple": ('(1,b,"{1}",sad)',),
}
"""Texts of each type, by its name in pg_type."""

WITHOUT_INPUT: Final = {
    *("gtsvector", "pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list"),
    *("pg_brin_bloom_summary", "pg_brin_minmax_multi_summary"),
}
"""Types that take no text: only their NULL can be asked for."""

TYPES: Final = """
SELECT t.typname, format('%I.%I', n.nspname, t.typname), a.oid IS NOT NULL
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_type a ON a.oid = t.typarray
WHERE NOT (t.typelem <> 0 AND t.typoutput = 'array_out'::regproc AND t.typbasetype = 0)
  AND t.typtype <> 'p'
  AND (t.typtype <> 'c' OR n.nspname = 'kinds' AND t.typname <> 'modified')
  AND n.nspname IN ('pg_catalog', 'information_schema', 'kinds')
ORDER BY t.oid
"""
"""Every type that a column may have, but row types of tables."""

ELEMENTS: Final = """
WITH RECURSIVE base AS (
    SELECT oid AS of, oid, typbasetype FROM pg_type
    UNION ALL
    SELECT base.of, t.oid, t.typbasetype FROM base JOIN pg_type t ON t.oid = base.typbasetype
)
SELECT t.oid::int8, base.oid::int8
FROM pg_type t JOIN base ON base.of = t.typelem AND base.typbasetype = 0
WHERE t.typoutput = 'array_out'::regproc AND t.typbasetype = 0 AND t.typdelim = ','
"""
"""Array types with their elements' types, domains taken for what they are of. Arrays of `box` have
another delimiter, which postgres-array does not know."""


FIELD: Final = [
    *("name", "dataTypeID", "tableID", "columnID", "dataTypeSize", "dataTypeModifier", "format"),
]
"""What the protocol has of a field."""


@dataclass(frozen=True)
class Doors:
    """The two ways to the server, as one role."""

    server: SqlServer
    key: Key
    login: Login
    postgres: Postgres
    elements: Mapping[str, int]

    def over_tcp(self, queries: Sequence[str]) -> list[dict[str, Any]]:
        """Run queries by node-postgres."""
        connection = {
            "host": "127.0.0.1",
            "port": self.postgres.port,
            "database": DATABASE,
            "user": self.login.name,
            "password": self.login.password,
            "ca": str(self.postgres.ca_file),
        }
        order = {"connection": connection, "queries": queries, "elements": self.elements}
        done = subprocess.run(
            [NODE, str(PROGRAM), str(NODE_MODULES)],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers

    def over_http(self, query: str, *, raw: bool, arrays: bool) -> Any:
        """Run one query by `/sql`."""
        headers = {
            "Neon-Raw-Text-Output": str(raw).lower(),
            "Neon-Array-Mode": str(arrays).lower(),
        }
        answer = self.server.post({"query": query}, self.key, headers)
        assert answer.status == 200, (query, answer.body)
        return answer.body


@pytest.fixture(scope="module")
def admin_dsn(postgres: Postgres) -> Iterator[str]:
    """The database's superuser, once the types are there."""
    dsn = make_conninfo(postgres.superuser_dsn, dbname=DATABASE)
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(USER_TYPES)
    yield dsn
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("DROP SCHEMA kinds CASCADE")


@pytest.fixture(scope="module")
def doors(postgres: Postgres, secrets_service: SecretsService, admin_dsn: str) -> Iterator[Doors]:
    """Both ways."""
    with psycopg.connect(admin_dsn) as admin:
        elements = {str(oid): element for oid, element in admin.execute(ELEMENTS).fetchall()}
    login = create_login(postgres, secrets_service, "canary-of-types")
    with sql_server(direct(postgres), secrets_service, {"reader": login}) as server:
        yield Doors(server, server.create_key("reader"), login, postgres, elements)


@pytest.fixture(scope="module")
def queries(admin_dsn: str) -> dict[str, str]:
    """A query for each type: NULL, its samples, arrays of them, an array with bounds."""
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        found = admin.execute(TYPES).fetchall()
        missing = {name for name, _, _ in found} - SAMPLES.keys() - WITHOUT_INPUT
        assert missing == set(), "types without a sample"
        return {
            qualified: query_of(qualified, _accepted(admin, qualified, name), has_array=has_array)
            for name, qualified, has_array in found
        }


def _accepted(admin: psycopg.Connection[Any], qualified: str, name: str) -> Sequence[str]:
    """Return the samples of a type; none of xml, if the server was built without it."""
    samples = SAMPLES.get(name, ())
    try:
        for sample in samples:
            admin.execute(f"SELECT {sql.Literal(sample).as_string(admin)}::{qualified}")
    except psycopg.errors.FeatureNotSupported:
        assert name == "xml"
        return ()
    return samples


def query_of(qualified: str, samples: Sequence[str], *, has_array: bool) -> str:
    """Write the query of one type."""
    values = [f"{sql.Literal(each).as_string(None)}::{qualified}" for each in samples]
    columns = [f"NULL::{qualified}", *values]
    if has_array:
        array = f"ARRAY[NULL::{qualified}{''.join(f', {each}' for each in values)}]"
        columns += [f"NULL::{qualified}[]", f"'{{}}'::{qualified}[]", array]
        columns += [f"array_fill({each}, ARRAY[2, 1], ARRAY[0, -3])" for each in values]
    named = [f"{each} AS c{number}" for number, each in enumerate(columns)]
    return f"SELECT {', '.join(named)}"


def field_names(fields: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what only node-postgres has."""
    return [{name: field[name] for name in FIELD} for field in fields]


def compare(doors: Doors, queries: Sequence[str]) -> None:
    """Compare both ways: fields, command, and rows in all four forms."""
    for query, expected in zip(queries, doors.over_tcp(queries), strict=True):
        for name in ("raw arrays", "raw objects", "converted arrays", "converted objects"):
            raw, arrays = name.startswith("raw"), name.endswith("arrays")
            found = doors.over_http(query, raw=raw, arrays=arrays)
            if raw or "pg_catalog.box" not in query:
                assert found["rows"] == expected[name], query
            assert found["fields"] == field_names(expected["fields"]), query
            assert (found["command"], found["rowCount"]) == (
                expected["command"],
                expected["rowCount"],
            )


def test_every_type(doors: Doors, queries: dict[str, str]) -> None:
    """Scalars, arrays, ranges, multiranges, composites, enums and domains, raw and not raw."""
    assert len(queries) > 90
    compare(doors, list(queries.values()))


def test_columns_of_a_table(doors: Doors) -> None:
    """A column has the ids of its table and of itself, and its type's modifier."""
    compare(
        doors, ["SELECT * FROM kinds.modified", "SELECT a, 1, k FROM kinds.modified WHERE false"]
    )


def test_rows_of_tables_and_records(doors: Doors) -> None:
    """They are text, as are the elements of their arrays."""
    compare(
        doors,
        ["SELECT m, ROW(1), ARRAY[ROW('a b')], ARRAY(SELECT a FROM pg_am a) FROM kinds.modified m"],
    )


def test_arrays_of_boxes(doors: Doors) -> None:
    """Their delimiter is a semicolon."""
    query = "SELECT ARRAY['(3,4),(1,2)'::box, NULL, '(1,1),(0,0)'] AS a"
    found = doors.over_http(query, raw=False, arrays=True)
    assert found["rows"] == [[["(3,4),(1,2)", None, "(1,1),(0,0)"]]]


def test_documents_keep_all_digits(doors: Doors) -> None:
    """JavaScript would lose them; the answer has them."""
    headers: dict[str, str] = {}
    query = "SELECT '{\"a\": 12345678901234567890.12345678901234567890}'::json"
    answer = doors.server.post({"query": query}, doors.key, headers)
    assert b'{"a": 12345678901234567890.12345678901234567890}' in answer.content


def test_commands(doors: Doors) -> None:
    """A command is the first word of its tag; a count there is the number of rows."""
    compare(doors, ["SHOW server_version", "VALUES (1), (2)", "SELECT FROM kinds.modified"])
    counts = {
        "": ("", None),
        "-- nothing": ("", None),
        "SELECT 1;": ("SELECT", 1),
        "SET LOCAL work_mem = '1MB'": ("SET", None),
        "EXPLAIN SELECT 1": ("EXPLAIN", None),
        "DO $$ BEGIN END $$": ("DO", None),
    }
    for query, expected in counts.items():
        found = doors.over_http(query, raw=True, arrays=True)
        assert (found["command"], found["rowCount"]) == expected, query
