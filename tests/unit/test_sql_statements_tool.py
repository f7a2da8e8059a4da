"""`make sql-statements`: what it takes out of requests, and what it does not overwrite."""

import http.client
import json
import threading
from pathlib import Path

import pytest

from lambda_pg_cdk.functions.sql.sql_http.statements import StatementsError, load_statements
from lambda_pg_cdk.tools import sql_statements
from lambda_pg_cdk.tools.sql_statements import Collection, name_of, server, texts_of


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        ({"query": "SELECT $1", "params": ["x"]}, ["SELECT $1"]),
        ({"queries": [{"query": "a"}, {"query": "b"}]}, ["a", "b"]),
        ({"queries": []}, []),
        ({"queries": [None, {"query": 1}, {}, {"query": "c"}]}, ["c"]),
        ({"queries": "abc"}, []),
        ({"queries": None}, []),
        *(([], []), ("x", []), (None, []), ({}, [])),
    ],
)
def test_the_texts_of_a_request(body: object, texts: list[str]) -> None:
    """A single statement's or a batch's, without parameters."""
    assert list(texts_of(json.dumps(body).encode())) == texts


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_has_no_text(body: bytes) -> None:
    """The API answers it."""
    assert list(texts_of(body)) == []


def test_a_collection_goes_on_where_it_was(tmp_path: Path) -> None:
    """Each text is there once, and a name is the same in each run."""
    file = tmp_path / "new" / "statements.json"
    collection = Collection(file, reads=False)
    assert [collection.add(query) for query in ("SELECT 1", "SELECT 1")] == [True, False]
    first = file.read_text()
    again = Collection(file, reads=True)
    assert not again.add("SELECT 1")
    assert file.read_text() == first
    assert again.add("/* é */ SELECT 2")
    assert json.loads(file.read_text()) == {
        name_of("SELECT 1"): "SELECT 1",
        name_of("/* é */ SELECT 2"): {"sql": "/* é */ SELECT 2", "reads": True},
    }
    assert name_of("SELECT 1") == "select-e004ebd5"
    assert load_statements(file).allows("/* é */ SELECT 2")


def test_a_file_that_is_wrong_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tool says what is wrong, and does not start."""
    file = tmp_path / "statements.json"
    file.write_text('{"a": 1}')
    with pytest.raises(StatementsError):
        Collection(file, reads=False)
    given = ["--to", "http://127.0.0.1:1/sql", "--file", str(file), "--port", "0"]
    assert sql_statements.main(given) == 1
    assert "'a' has no text" in capsys.readouterr().err
    assert file.read_text() == '{"a": 1}'


def test_an_api_that_is_gone_is_said(tmp_path: Path) -> None:
    """The answer is 502, with its URL; nothing is collected."""
    collection = Collection(tmp_path / "statements.json", reads=False)
    with server("http://127.0.0.1:1/sql", collection, 0) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True).start()
        connection = http.client.HTTPConnection("127.0.0.1", listening.server_address[1])
        connection.request("POST", "/sql", json.dumps({"query": "SELECT 1"}))
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        listening.shutdown()
    assert answer.status == 502
    assert "http://127.0.0.1:1/sql" in text
    assert not (tmp_path / "statements.json").exists()
