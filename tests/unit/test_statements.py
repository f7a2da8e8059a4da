"""What the text of a statement says about the session it runs in."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lambda_pg._profiles import (
    DIRECT,
    NEON_DIRECT,
    NEON_POOLED,
    PGBOUNCER,
    RDS_PROXY,
    SUPABASE_SESSION,
    SUPABASE_TRANSACTION,
    Profile,
)
from lambda_pg._statements import (
    _remembered,
    is_undone_by_error,
    refusal,
    refusal_alone,
    session_effect,
)

LASTING = "set_config(…, false)"
UNKNOWN = "set_config(…) that may be lasting"
LOCK = "a session advisory lock"
TABLE = "a temporary table"

EFFECTS = {
    "SET search_path = x": "SET",
    "set search_path to x": "SET",
    "SET SESSION search_path = x": "SET",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY": "SET",
    "SET SESSION AUTHORIZATION x": "SET",
    "SET ROLE x": "SET",
    "SET TIME ZONE 'UTC'": "SET",
    "SET my.value = 'local'": "SET",
    "BEGIN; SET x = 1; COMMIT": "SET",
    "SELECT 1; SET x = 1": "SET",
    "SELECT ');'; SET x = 1": "SET",
    "SELECT '\\'; SET x = 1": "SET",
    r"SELECT E'\\'; SET x = 1": "SET",
    "SELECT a$b$c; SET x = 1": "SET",
    "SELECT $1; SET x = 1": "SET",
    "SELECT $é$ ; $é$; SET x = 1": "SET",
    "/* SET LOCAL */ SET x = 1": "SET",
    "-- nothing\nSET x = 1": "SET",
    "/* a /* b */ c */SET/**/x = 1": "SET",
    "RESET ALL": "RESET",
    "RESET search_path": "RESET",
    "DISCARD ALL": "DISCARD",
    "LISTEN channel": "LISTEN",
    "UNLISTEN *": "UNLISTEN",
    "LOAD 'auto_explain'": "LOAD",
    "PREPARE p (int) AS SELECT $1": "PREPARE",
    "EXECUTE p(1)": "EXECUTE",
    "EXPLAIN EXECUTE p(1)": "EXECUTE",
    "EXPLAIN ANALYZE VERBOSE EXECUTE p(1)": "EXECUTE",
    "EXPLAIN (ANALYZE, FORMAT json) EXECUTE p(1)": "EXECUTE",
    "DEALLOCATE ALL": "DEALLOCATE",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1": "a cursor WITH HOLD",
    "DECLARE c INSENSITIVE SCROLL CURSOR WITH HOLD FOR SELECT 1": "a cursor WITH HOLD",
    "CREATE TEMP TABLE t (a int)": TABLE,
    "CREATE TEMPORARY TABLE IF NOT EXISTS t AS SELECT 1": TABLE,
    "CREATE LOCAL TEMP TABLE t (a int) ON COMMIT DELETE ROWS": TABLE,
    "CREATE TABLE pg_temp.t (a int)": TABLE,
    'CREATE TABLE IF NOT EXISTS "pg_temp".t (a int)': TABLE,
    "CREATE OR REPLACE TEMP VIEW v AS SELECT 1": "a temporary view",
    "CREATE TEMP RECURSIVE VIEW v (n) AS SELECT 1": "a temporary view",
    "CREATE TEMPORARY SEQUENCE s": "a temporary sequence",
    "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'": "a temporary object",
    "SELECT 1 AS a INTO TEMP t": TABLE,
    "WITH x AS (SELECT 1) SELECT * INTO TEMPORARY TABLE t FROM x": TABLE,
    "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1": TABLE,
    "SELECT set_config('a', 'b', false)": LASTING,
    "SELECT pg_catalog.set_config('a', 'b', FALSE)": LASTING,
    """SELECT "set_config"('a', 'b', false)""": LASTING,
    "SELECT set_config('a', 'b', is_local => false)": LASTING,
    "SELECT set_config(is_local := false, setting_name := 'a', new_value := 'b')": LASTING,
    "SELECT set_config('a', f(1, true), false)": LASTING,
    "SELECT set_config('a', 'b', true), set_config('c', 'd', false)": LASTING,
    "WITH x AS (SELECT set_config('a', 'b', false)) SELECT * FROM x": LASTING,
    "UPDATE t SET a = set_config('a', 'b', false)": LASTING,
    "INSERT INTO t VALUES (set_config('a', 'b', false))": LASTING,
    "SELECT set_config('a', 'b', $1)": UNKNOWN,
    "SELECT set_config('a', 'b', %s)": UNKNOWN,
    "SELECT set_config('a', 'b', %(is_local)s)": UNKNOWN,
    "SELECT set_config('a', 'b', NOT false)": UNKNOWN,
    "SELECT set_config('a', 'b', true AND x)": UNKNOWN,
    "SELECT set_config('a', 'b')": UNKNOWN,
    "SELECT set_config(*)": UNKNOWN,
    "SELECT pg_advisory_lock(1)": LOCK,
    "SELECT pg_advisory_lock_shared(1, 2)": LOCK,
    "SELECT pg_try_advisory_lock (1)": LOCK,
    "SELECT pg_try_advisory_lock_shared(1)": LOCK,
    "SELECT pg_advisory_unlock(1)": LOCK,
    "SELECT pg_advisory_unlock_all()": LOCK,
    "SELECT PG_CATALOG.PG_ADVISORY_LOCK(1)": LOCK,
    "SELECT currval('s')": "currval()",
    "INSERT INTO t VALUES (1); SELECT lastval()": "lastval()",
}

HARMLESS = [
    "",
    ";",
    "SET",
    "CREATE",
    "CREATE TEMP",
    "SELECT 1",
    "SET LOCAL search_path = x",
    "set local\n role x",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET CONSTRAINTS ALL DEFERRED",
    "BEGIN; SET LOCAL x = 1; SELECT 1; COMMIT",
    "UPDATE t SET a = 1",
    "UPDATE t\nSET a = 1",
    "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 2",
    "MERGE INTO t USING s ON true WHEN MATCHED THEN UPDATE SET a = 1",
    "WITH x AS (UPDATE t SET a = 1 RETURNING a) SELECT * FROM x",
    "ALTER DATABASE app SET statement_timeout = 5000",
    "ALTER ROLE app SET search_path = x",
    "ALTER TABLE t SET (fillfactor = 70)",
    "ALTER FUNCTION f() SET search_path = x",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path = x AS 'SELECT 1'",
    "CREATE FUNCTION set_config(a text, b text, c boolean) RETURNS text AS 'x' LANGUAGE sql",
    "CREATE FUNCTION f() RETURNS text BEGIN ATOMIC SELECT 1; SELECT lastval(); END",
    "GRANT EXECUTE ON FUNCTION set_config(text, text, boolean) TO app",
    "COMMENT ON FUNCTION pg_advisory_lock(bigint) IS 'x'",
    "SELECT set_config('a', 'b', true)",
    "SELECT set_config('a', %s, TRUE)",
    "SELECT set_config(new_value => 'a', setting_name => 'b', is_local => true)",
    "SELECT set_config ( 'a' , 'false' , true )",
    "SELECT mine.set_config('a', 'b', false)",
    "SELECT my_set_config('a', 'b', false)",
    "SELECT set_config FROM t",
    "SELECT current_setting('x'), pg_notify('c', 'x')",
    "NOTIFY c, 'LISTEN c'",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT pg_advisory_xact_lock_shared(1)",
    "SELECT pg_try_advisory_xact_lock(1)",
    "LOCK TABLE t",
    "PREPARE TRANSACTION 'x'",
    "COMMIT PREPARED 'x'",
    "CREATE TEMP TABLE t (a int) ON COMMIT DROP",
    "CREATE TEMPORARY TABLE t ON COMMIT DROP AS SELECT 1",
    "CREATE TABLE temp (a int)",
    "CREATE TABLE t AS SELECT * FROM pg_temp.u",
    "CREATE UNLOGGED TABLE t (temp int)",
    "INSERT INTO temp VALUES (1)",
    "INSERT INTO temp (a) SELECT 1",
    "DROP TABLE pg_temp.t",
    "SELECT temp, temporary FROM t",
    "DECLARE c CURSOR FOR SELECT 1",
    "DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1",
    "DECLARE c CURSOR FOR SELECT 'WITH HOLD'",
    "SELECT set_x, listen, load FROM discard",
    "SELECT * FROM set_x WHERE reset = 1",
    'SELECT 1 AS "SET x = 1; LISTEN y"',
    'SELECT 1 AS "; SET x = 1"',
    'SELECT 1 AS "a""; SET x = 1"',
    "INSERT INTO t VALUES ('LISTEN x')",
    "INSERT INTO t VALUES ('; SET x = 1; ')",
    "INSERT INTO t VALUES ('it''s; SET x = 1')",
    "SELECT 'it''s; SET x = 1'",
    r"SELECT E'it\'; SET x = 1; '",
    r"SELECT e'\\\'; SET x = 1; '",
    "SELECT B'1', X'ff', N'; SET x = 1', U&'; SET x = 1'",
    "SELECT $$; SET x = 1; $$",
    "SELECT $a$; SET x = 1; $$ ; SET y = 1; $b$ ; SET z = 1; $a$",
    "DO $do$ BEGIN PERFORM set_config('a', 'b', false); END $do$",
    "SELECT 1 -- ; SET x = 1",
    "SELECT 1 /* ; SET x = 1; */",
    "SELECT 1 /* /* */ ; SET x = 1; */",
    "SELECT a$b$c FROM t -- $b$",
    "SELECT $1; SELECT $2",
    "SELECT '; SET x = 1",
    "SELECT 1 /* SET",
    "CREATE RULE r AS ON INSERT TO t DO ALSO (UPDATE u SET a = 1; UPDATE u SET b = 2)",
    "EXPLAIN UPDATE t SET a = 1",
    "EXPLAIN (",
    "COPY t FROM STDIN",
    "SAVEPOINT set; RELEASE SAVEPOINT set",
    "BEGIN",
    "COMMIT",
]


@pytest.mark.parametrize(("query", "effect"), EFFECTS.items())
def test_what_sets_or_needs_session_state_is_named(query: str, effect: str) -> None:
    """Whatever outlives its transaction is named."""
    assert session_effect(query) == effect


@pytest.mark.parametrize("query", HARMLESS)
def test_what_ends_with_its_transaction_is_no_effect(query: str) -> None:
    """Local settings, literals, comments and look-alikes are nothing to refuse."""
    assert session_effect(query) is None
    assert refusal(query, PGBOUNCER) is None


IN_VAIN = {
    "SET LOCAL search_path = x": "SET LOCAL",
    "set /* a */ local\n role x": "SET LOCAL",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE": "SET TRANSACTION",
    "SET CONSTRAINTS ALL DEFERRED": "SET CONSTRAINTS",
    "SELECT set_config('a', 'b', true)": "set_config(…, true)",
    "SELECT set_config('a', %s, TRUE) AS a, pg_catalog.set_config('b', f(1, 2), true) b;": (
        "set_config(…, true)"
    ),
    """SELECT "set_config"('a', 'b', is_local => true)""": "set_config(…, true)",
    "CREATE TEMP TABLE t (a int) ON COMMIT DROP": "a temporary table ON COMMIT DROP",
    "SET LOCAL x = 1; SET LOCAL y = 2;": "SET LOCAL",
}

IN_USE = [
    "",
    ";",
    "SELECT",
    "SET",
    "SELECT 'SET LOCAL x = 1'",
    "SET x = 1",
    "SET LOCAL x = 1; SELECT 1",
    "BEGIN; SET LOCAL x = 1; COMMIT",
    "SELECT set_config('a', 'b', false)",
    "SELECT set_config('a', 'b', %s)",
    "SELECT set_config('a', 'b', true), x FROM t",
    "SELECT set_config('a', 'b', true) FROM t",
    "SELECT set_config('a', 'b', true), current_setting('a')",
    "SELECT set_config('a', 'b', true)::int",
    "SELECT set_config('a', 'b', true",
    "SELECT set_config",
    "SELECT mine.set_config('a', 'b', true)",
    "WITH x AS (SELECT set_config('a', 'b', true)) SELECT * FROM t, x",
    "INSERT INTO t VALUES (set_config('a', 'b', true))",
    "CREATE TEMP TABLE t (a int)",
    "CREATE TABLE t (a int)",
    "UPDATE t SET local = 1, transaction = 2, temp = 3",
    "SELECT pg_advisory_xact_lock(1)",
]


@pytest.mark.parametrize(("query", "effect"), IN_VAIN.items())
def test_what_does_nothing_outside_of_a_transaction_is_named(query: str, effect: str) -> None:
    """The sentence says what, and what to do instead."""
    told = refusal_alone(query)
    assert told is not None
    assert told.startswith(f"{effect} outside of a transaction does nothing")
    assert "run_transaction()" in told


@pytest.mark.parametrize("query", IN_USE)
def test_what_does_anything_else_is_not(query: str) -> None:
    """A statement beside it may use what is set, and so may one around it."""
    assert refusal_alone(query) is None


GAPS = st.sampled_from([" ", "\n", "\t ", "/**/", "/* ; SET x /* ' */ */", "-- ' $$ \"\n"])


LITERAL = re.compile(r"""('[^']*'|"[^"]*")""")
PLAIN = [query for query in EFFECTS if "--" not in query and "/*" not in query]


@given(st.sampled_from(PLAIN), GAPS, GAPS, st.booleans())
def test_comments_and_case_hide_nothing(query: str, before: str, gap: str, upper: bool) -> None:
    """Comments before, inside and after a statement change nothing about its effect."""
    parts = LITERAL.split(query)
    parts[::2] = [(part.upper() if upper else part).replace(" ", gap) for part in parts[::2]]
    assert session_effect(before + "".join(parts) + gap) == EFFECTS[query]


WHOLE = ["", "SELECT 1", "BEGIN", "UPDATE t SET a = 1", "SELECT $$; SET x = 1; $$", "SELECT ')'"]


@given(st.sampled_from(sorted(EFFECTS)), st.lists(st.sampled_from(WHOLE), max_size=3))
def test_an_effect_shows_among_other_statements(query: str, others: list[str]) -> None:
    """A string of several statements has the effect of any of them."""
    for place in range(len(others) + 1):
        assert (
            session_effect("; ".join([*others[:place], query, *others[place:]])) == (EFFECTS[query])
        )


@given(st.sampled_from(sorted(EFFECTS)))
def test_an_effect_in_a_literal_is_none(query: str) -> None:
    """The same text as data, an identifier or a comment has no effect."""
    doubled, named = query.replace("'", "''"), query.replace('"', '""')
    escaped = query.replace("\\", "\\\\").replace("'", "\\'")
    for literal in (f"'; {doubled}'", f'"; {named}"', f"$q$; {query}$q$", f"E'; {escaped}'"):
        assert session_effect(f"VALUES ({literal})") is None


PIECES = ["'", '"', "$$", "$a$", "/*", "*/", "--", "\n", ";", "(", ")", ",", "\\", "E'", "U&'"]
PIECES += ["SET", "x", "set_config", "true", "CREATE", "TEMP", "EXPLAIN", "pg_temp", ".", "=>", " "]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join))
def test_any_text_is_looked_at(text: str) -> None:
    """No text raises, and the same text gives the same answer."""
    assert session_effect(text) == session_effect(text)
    for profile in (PGBOUNCER, RDS_PROXY, DIRECT):
        refusal(text, profile)
    refusal_alone(text)


@pytest.mark.parametrize(
    "text",
    [
        "E'" + "a\\" * 50_000,
        "'" * 100_001,
        '"' * 100_001,
        "$a$" * 30_001,
        "/*" * 50_000,
        "(" * 50_000,
        "set_config(" * 2_000,
        "EXPLAIN (" * 2_000,
        "SELECT 1; " * 10_000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    """The time grows with the length, whatever is left open: nobody waits for a hostile literal."""
    started = time.perf_counter()
    session_effect(f"{text} SET")
    refusal_alone(f"SELECT {text} LOCAL")
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("profile", [DIRECT, SUPABASE_SESSION, NEON_DIRECT])
def test_nothing_is_refused_in_a_session_of_ones_own(profile: Profile) -> None:
    """Where the server connection is this client's, everything works."""
    for query in EFFECTS:
        assert refusal(query, profile, prepare=True, named_cursor=True) is None


@pytest.mark.parametrize("profile", [PGBOUNCER, RDS_PROXY, SUPABASE_TRANSACTION, NEON_POOLED])
def test_an_effect_is_refused_in_a_shared_session(profile: Profile) -> None:
    """The sentence names what, where, and the page that says what to do instead."""
    for query, effect in EFFECTS.items():
        told = refusal(query, profile)
        assert told is not None
        assert told.startswith(effect)
        assert "docs/pooling.md" in told


@pytest.mark.parametrize(
    "query",
    [
        "CREATE TEMP TABLE t (a int) ON COMMIT DROP",
        "DECLARE c CURSOR FOR SELECT 1",
        "SELECT nextval('s')",
        "SELECT setval('s', 1)",
        "INSERT INTO t VALUES ('" + "x" * 16_384 + "')",
        "INSERT INTO t VALUES ('" + "é" * 8_192 + "')",
    ],
)
def test_rds_proxy_minds_more(query: str) -> None:
    """What ends with its transaction still pins there, and so does a long statement."""
    told = refusal(query, RDS_PROXY)
    assert told is not None
    assert "pins" in told
    assert refusal(query, PGBOUNCER) is None


@pytest.mark.parametrize("query", ["SELECT 'nextval(1)'", "-- " + "x" * 16_381, "SELECT 1"])
def test_rds_proxy_takes_the_rest(query: str) -> None:
    """Exactly 16 KB is not more than 16 KB."""
    assert len(query) <= 16_384
    assert refusal(query, RDS_PROXY) is None


def test_prepared_statements_and_named_cursors_are_judged_by_profile() -> None:
    """Preparing needs a pooler that follows it; a cursor in a transaction pins RDS Proxy alone."""
    refused = {
        profile.name: bool(refusal("SELECT 1", profile, prepare=True))
        for profile in (PGBOUNCER, RDS_PROXY, SUPABASE_TRANSACTION, NEON_POOLED)
    }
    assert refused == {"pgbouncer": False, "rds-proxy": True, "supabase": True, "neon": False}
    assert refusal("SELECT 1", RDS_PROXY, named_cursor=True) is not None
    assert refusal("SELECT 1", PGBOUNCER, named_cursor=True) is None


UNDONE = {
    "SELECT 1": True,
    "(SELECT 1) UNION (SELECT 2)": True,
    "  -- CALL p()\n/* DO */ insert into t values ('; CALL p()')": True,
    "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x": True,
    "UPDATE t SET a = 1; DELETE FROM t;": True,
    "EXPLAIN ANALYZE UPDATE t SET a = 1": True,
    "": True,
    "CALL p()": False,
    "/* a */ call p()": False,
    "SELECT 1; CALL p()": False,
    "DO $$ BEGIN COMMIT; END $$": False,
    "INSERT INTO t VALUES (1); COMMIT; SELECT 1": False,
    "BEGIN; INSERT INTO t VALUES (1); END; SELECT 1": False,
    "CREATE INDEX CONCURRENTLY i ON t (a)": False,
    "VACUUM t": False,
    "EXECUTE p": False,
}


@pytest.mark.parametrize(("query", "expected"), UNDONE.items())
def test_only_what_an_error_certainly_undoes_may_be_repeated(query: str, expected: bool) -> None:
    """A statement that can commit a part of its work is not one of them, wherever it stands."""
    assert is_undone_by_error(query) is expected


def test_long_statements_are_not_remembered() -> None:
    """What is kept is bounded in bytes, whatever the characters: some have four of them."""
    _remembered.cache_clear()
    session_effect("SET x = 1 -- " + "\N{GRINNING FACE}" * 4000)  # 16 KB in fewer characters
    session_effect("SET x = 1 -- " + "a" * 500_000)
    assert _remembered.cache_info().currsize == 0
    session_effect("SET x = 1 -- " + "a" * 4000)
    assert _remembered.cache_info().currsize == 1
