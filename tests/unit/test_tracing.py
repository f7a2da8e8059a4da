"""What a span says of a statement: a summary for grouping, and a text without literals."""

import pytest

from tests.support.tracing import Spans

SUMMARIES = {
    "SELECT * FROM wuser_table WHERE username = %s": "SELECT wuser_table",
    "INSERT INTO shipping (id) SELECT id FROM orders": "INSERT shipping SELECT orders",
    "SELECT d FROM (SELECT * FROM a o JOIN b c ON o.x = c.x)": "SELECT SELECT a b",
    'SELECT * FROM "song list"': 'SELECT "song list"',
    "select extract(year from at) from app.orders for update": "select app.orders",
    "INSERT INTO a VALUES (1) ON CONFLICT DO UPDATE SET n = 1": "INSERT a",
    "WITH x AS (DELETE FROM a RETURNING *) SELECT * FROM x": "DELETE a SELECT x",
    "UPDATE ONLY a SET n = 1": "UPDATE a",
    "MERGE INTO a USING b ON true WHEN MATCHED THEN DELETE": "MERGE a",
    "SELECT a IS DISTINCT FROM b FROM c": "SELECT c",
    "SELECT 1; DELETE FROM a": "SELECT DELETE a",
    "COPY a (n) FROM STDIN": "COPY a",
    "CALL work(1)": "CALL work",
    "VALUES (1)": "VALUES",
    "/* nothing */": "",
}


@pytest.mark.parametrize("query", SUMMARIES)
def test_a_summary_names_operations_and_tables(query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, as they are written; the first are like the conventions' examples."""
    Spans(monkeypatch)
    from lambda_pg._tracing import _summary_and_text  # noqa: PLC0415 - it loads OpenTelemetry

    assert _summary_and_text(query, has_parameters=False)[0] == SUMMARIES[query]


TEXTS = {
    "SELECT 'a', E'b\\'c', $$d$$, $x$e$x$, 1.5e3, 0xFF, B'1', n FROM t": (
        "SELECT ?, ?, ?, ?, ?, ?, ?, n FROM t"
    ),
    'SELECT $1, n2, "a\'b" FROM t WHERE n = -7 -- secret': (
        'SELECT $1, n2, "a\'b" FROM t WHERE n = -?'
    ),
    "SELECT /* a /* nested */ secret */ 1": "SELECT ?",
    "SELECT 'secret": "SELECT ?",
    "SELECT $$secret": "SELECT ?",
    "SELECT 1 /* secret": "SELECT ?",
}


@pytest.mark.parametrize("query", TEXTS)
def test_a_text_without_parameters_has_no_literal(
    query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a comment; what has no end reaches to the end."""
    Spans(monkeypatch)
    from lambda_pg._tracing import _summary_and_text  # noqa: PLC0415 - it loads OpenTelemetry

    assert _summary_and_text(query, has_parameters=False)[1] == TEXTS[query]


def test_a_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 8,192 characters, and a summary between two words, at 255."""
    Spans(monkeypatch)
    from lambda_pg._tracing import _summary_and_text  # noqa: PLC0415 - it loads OpenTelemetry

    query = " UNION ".join(f"SELECT n FROM table_{n}" for n in range(1000))  # noqa: S608 - names
    summary, text = _summary_and_text(query, has_parameters=True)
    assert text == query[:8192]
    assert 240 < len(summary) <= 255
    assert summary == " ".join(f"SELECT table_{n}" for n in range(1000))[: len(summary)]
    assert summary.split()[-1] in {"SELECT", *(f"table_{n}" for n in range(1000))}
