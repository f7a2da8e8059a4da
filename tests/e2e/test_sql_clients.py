"""Real clients, unmodified, on POST /sql, each in the runtimes that users have."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lambda_pg_cdk.local.cloud import LocalCloud
from tests.support.clients import (
    NO_TABLES,
    PRISMA_OPERATIONS,
    Door,
    Report,
    copy_of_examples,
    execute,
    run,
    run_python,
    succeeded,
    tool,
    with_password,
)
from tests.support.sql_cloud import door_of, door_of_domains

pytestmark = pytest.mark.timeout(600)  # on a busy machine

DRIVERS = (
    ("run_driver.mjs", "@neondatabase/serverless"),
    ("run_driver.mjs", "neon-serverless-1.1"),
    ("run_driver_in_edge.mjs", "@neondatabase/serverless"),
    ("run_driver_in_edge.mjs", "neon-serverless-1.1"),
    ("run_driver_in_workerd.mjs", "@neondatabase/serverless"),
    ("run_driver_in_workerd.mjs", "neon-serverless-1.1"),
)
LEVELS = {
    "ReadUncommitted": "read uncommitted",
    "ReadCommitted": "read committed",
    "RepeatableRead": "repeatable read",
    "Serializable": "serializable",
}
SAID = ("code", "severity", "constraint", "table", "schema", "column", "dataType", "detail", "hint")


@pytest.fixture(scope="module")
def door(cloud: LocalCloud) -> Iterator[Door]:
    """The deployed POST /sql."""
    door = door_of(cloud)
    yield door
    execute(door, NO_TABLES)


@pytest.fixture(scope="module", params=DRIVERS, ids="-".join)
def driver(request: pytest.FixtureRequest, door: Door) -> Report:
    """What a version of the driver finds in a runtime."""
    return run(door, *request.param)


def test_queries_and_their_results(driver: Report) -> None:
    """Templates, composition, placeholders, and each form of a result."""
    assert driver.value("template") == [{"sum": 3}]
    assert driver.value("composed template") == [{"id": 1}, {"id": 2}]
    assert driver.value("query") == [{"word": "x", "numbers": [1, 2]}]
    assert driver.value("array mode") == [[1, 2]]
    full = driver.value("full results")
    assert full["rows"] == [{"id": 1, "name": "Ada"}, {"id": 2, "name": "Grace"}]
    assert (full["command"], full["rowCount"], full["rowAsArray"]) == ("SELECT", 2, False)
    assert [strict(each) for each in full["fields"]] == [
        ("id", 23, 1, 4, -1, "text"),
        ("name", 25, 2, -1, -1, "text"),
    ]
    assert driver.value("full results in array mode") == {
        "rows": [[1]],
        "command": "SELECT",
        "rowCount": 1,
        "rowAsArray": True,
    }
    assert driver.value("insert") == [{"title": "Sketch", "pages": 10}]
    assert driver.value("row count of an update") == {
        "command": "UPDATE",
        "rowCount": 1,
        "fields": [],
        "rows": [],
    }
    assert driver.value("empty query") == ""


def strict(found: dict[str, Any]) -> tuple[Any, ...]:
    """Take what clients compare of a field; the table's number differs in each run."""
    assert isinstance(found["tableID"], int)
    names = ("name", "dataTypeID", "columnID", "dataTypeSize", "dataTypeModifier", "format")
    return tuple(found[name] for name in names)


def test_values_keep_their_types(driver: Report) -> None:
    """In both directions; what JavaScript's numbers cannot hold stays text."""
    assert driver.value("types") == [
        {
            "int8": "9007199254740993",
            "numeric": "1.50",
            "float8": 0.5,
            "bool": True,
            "jsonb": {"a": [1]},
            "texts": ["a", None],
            "nothing": None,
            "at": "2026-12-01T00:00:00.000Z",
            "bytes": True,
        }
    ]
    assert driver.value("parameters of each type") == [
        {
            "text": "ä",
            "float": 1.5,
            "bool": True,
            "nothing": None,
            "json": {"a": [1, None]},
            "texts": ["a", 'b"', None],
            "big": "12345678901234567890",
            "at": "1970-01-01T00:00:00.000Z",
        }
    ]


def test_a_batch_is_one_transaction(driver: Report) -> None:
    """With each isolation level, read-only and deferrable; all or nothing."""
    assert {level: driver.value(f"isolation {level}") for level in LEVELS} == LEVELS
    assert driver.value("batch by a function") == [[{"one": 1}], [{"two": "two"}]]
    assert driver.value("batch is one transaction") is True
    assert driver.value("batch with full results") == [
        {"command": "SELECT", "rowCount": 1, "rows": [[1]]}
    ]
    assert driver.value("empty batch") == []
    assert driver.value("read only") == "on"
    assert driver.error("write in read only")["code"] == "25006"
    assert driver.value("deferrable") == "on"
    assert driver.value("options of the client") == {
        "transaction_isolation": "serializable",
        "transaction_read_only": "on",
    }
    assert driver.error("failed batch")["code"] == "23505"
    assert driver.value("failed batch left nothing") == [{"rows": 0}]
    assert driver.error("unknown isolation level")["message"] == "invalid isolation level"


def test_errors_say_what_postgresql_says(driver: Report) -> None:
    """A NeonDbError with `code`, `constraint`, `position` and the rest."""
    unique = driver.error("unique violation")
    assert unique["name"] == "NeonDbError"
    assert [unique.get(name) for name in SAID] == [
        *("23505", "ERROR", "authors_name_key", "authors", "public", None, None),
        *("Key (name)=(Ada) already exists.", None),
    ]
    assert driver.error("check violation")["constraint"] == "books_pages_check"
    syntax = driver.error("syntax error")
    assert (syntax["code"], syntax["position"]) == ("42601", "14")
    column = driver.error("unknown column")
    assert (column["code"], column["position"]) == ("42703", "8")
    assert driver.error("invalid input")["code"] == "22P02"
    assert driver.error("several statements")["code"] == "42601"
    raised = driver.error("raised in a function")
    assert [raised.get(name) for name in SAID] == [
        *("P0042", "ERROR", "a_rule", "books", "public", "title", "text", "a detail", "a hint")
    ]
    assert raised["message"] == "refused: no"
    assert "PL/pgSQL function refuse(text)" in raised["where"]
    assert driver.error("wrong password")["code"] == "28P01"
    assert driver.error("not in a transaction block")["code"] == "25001"


def test_a_pool_queries_by_fetch(driver: Report) -> None:
    """`Pool` with `poolQueryViaFetch`; without it, it asks for a WebSocket."""
    assert driver.value("pool by fetch") == {"rows": [{"n": 7}], "rowCount": 1, "command": "SELECT"}
    assert driver.error("pool by fetch, a failed statement")["code"] == "22012"


def test_the_password_may_come_from_a_function(
    request: pytest.FixtureRequest, driver: Report
) -> None:
    """From 1.2.0 on; 1.1.0 sends none."""
    if "neon-serverless-1.1" in request.node.callspec.params["driver"]:
        assert driver.error("password function")["code"] == "28P01"
    else:
        assert driver.value("password function") == [{"one": 1}]


def test_large_answers(driver: Report) -> None:
    """One megabyte arrives whole, compressed where the runtime accepts it; ten are refused."""
    assert driver.value("large answer") == 5000
    refused = driver.error("too large an answer")
    assert "HTTP status 507" in refused["message"]
    assert "code" not in refused


def test_a_token_runs_registered_statements(driver: Report) -> None:
    """As `authToken`, which leads to the API with the authorizer."""
    assert [user["name"] for user in driver.value("auth token")] == ["Ada"]
    assert driver.value("auth token of a function") == driver.value("auth token")
    assert driver.error("auth token, a free statement")["code"] == "42501"
    assert "401" in driver.error("a wrong auth token")["message"]


@pytest.mark.parametrize("package", ["drizzle-orm", "drizzle-orm-next"])
def test_drizzle(door: Door, package: str) -> None:
    """Statements, relational queries and batches; a transaction is refused by the client."""
    found = run(door, "drizzle.mjs", package)
    assert [row["id"] for row in found.value("select")] == [2, 3]
    assert found.value("join")[1] == {"title": "Compilers", "author": "Grace"}
    assert found.value("insert returning") == [{"title": "Sketch", "pages": 12}]
    assert found.value("update returning") == [{"pages": 13}]
    assert found.value("relational query") == [
        {"id": 1, "name": "Ada", "books": [{"title": "Notes"}, {"title": "Letters"}]},
        {"id": 2, "name": "Grace", "books": [{"title": "Compilers"}, {"title": "Sketch"}]},
    ]
    assert found.value("batch") == [
        [{"name": "Edsger"}],
        [{"name": "Ada"}, {"name": "Edsger"}, {"name": "Grace"}],
        {"title": "Notes"},
    ]
    assert found.error("failed batch")["code"] == "23514"
    assert found.value("failed batch left nothing") == 0
    assert found.value("execute") == [{"one": 1}]
    assert found.value("delete") == [{"title": "Sketch"}]
    assert found.error("failed statement")["cause"]["constraint"] == "books_pages_check"
    refused = found.error("transaction")["message"]
    assert refused == "No transactions support in neon-http driver"


def test_kysely(door: Door) -> None:
    """Statements; transactions and streams are refused by the client."""
    found = run(door, "kysely.mjs", newest=True)
    assert found.value("node") >= 22
    assert [row["id"] for row in found.value("select")] == [2, 3]
    assert found.value("join")[1] == {"title": "Compilers", "name": "Grace"}
    assert found.value("insert returning") == [{"title": "Sketch", "pages": 12}]
    assert found.value("rows of an update") == 1
    assert found.value("rows of a delete") == 1
    assert found.value("raw") == [{"one": 1}]
    assert found.error("failed statement")["constraint"] == "authors_name_key"
    assert "doesn't support interactive transactions" in found.error("transaction")["message"]
    assert "doesn't support streaming" in found.error("stream")["message"]


@pytest.mark.parametrize("face", ["sync", "async"])
def test_the_python_client(door: Door, face: str) -> None:
    """Parameters go as JSON values, so the function turns them into text."""
    found = run_python(door, face)
    assert found.value("query") == [{"id": 1, "name": "Ada"}]
    assert found.value("parameters of each type") == [
        {
            "number": 5,
            "bool": True,
            "float": 0.5,
            "nothing": None,
            "texts": ["a", None],
            "json": {"a": [1]},
            "text": "ä",
        }
    ]
    assert found.value("array mode") == [[1, 2]]
    full = found.value("full results")
    assert (full["command"], full["row_count"]) == ("SELECT", 2)
    assert full["rows"] == [{"id": 1}, {"id": 2}]
    assert found.value("insert") == [{"name": "Barbara"}]
    assert found.value("batch") == [[{"n": 1}], [{"transaction_isolation": "read committed"}]]
    assert found.value("strict batch")[1] == [{"transaction_isolation": "serializable"}]
    assert found.error("write in read only")["code"] == "25006"
    assert found.error("failed batch")["constraint"] == "authors_name_key"
    assert found.value("failed batch left nothing") == []
    syntax = found.error("syntax error")
    assert (syntax["code"], syntax["position"], syntax["status"]) == ("42601", "14", 400)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples, with Prisma's generated client."""
    return copy_of_examples(tmp_path_factory.mktemp("edge") / "examples")


@pytest.fixture(scope="module")
def prisma(door: Door, examples: Path) -> Report:
    """What each operation of Prisma's client does in workerd."""
    return run(door, "run_in_workerd.mjs", str(examples / "prisma_operations.ts"))


def test_every_operation_of_prisma(prisma: Report) -> None:
    """Which work over HTTP, and which ask for a transaction, is what docs/edge.md says."""
    asking = {name for name, check in prisma.checks.items() if asks_for_a_transaction(check)}
    failed = {name for name in prisma.checks if name.startswith("failed")}
    assert asking == set(PRISMA_OPERATIONS["fails"])
    assert prisma.checks.keys() - asking - failed == set(PRISMA_OPERATIONS["works"])
    not_there = {name for name in PRISMA_OPERATIONS["works"] if name.endswith("not there")}
    assert {prisma.error(name)["code"] for name in not_there} == {"P2025"}
    for name in set(PRISMA_OPERATIONS["works"]) - not_there:
        prisma.value(name)
    assert prisma.value("failed operations wrote") == 0


def asks_for_a_transaction(check: dict[str, Any]) -> bool:
    """Tell whether Prisma's client refused an operation by itself."""
    message: str = check.get("error", {}).get("message", "")
    return message == "Transactions are not supported in HTTP mode"


def test_what_prisma_reads_and_writes(prisma: Report) -> None:
    """Relations, counts, groups, rows of each write, and raw statements with their types."""
    assert prisma.value("findMany with include")[1] == {
        "id": 2,
        "name": "Grace",
        "books": [{"id": 2, "title": "Compilers", "pages": 200, "authorId": 2}],
    }
    assert prisma.value("findMany with a relation filter") == [{"id": 2, "name": "Grace"}]
    assert [row["_count"]["books"] for row in prisma.value("findMany with _count")] == [2, 1]
    assert prisma.value("count") == 2
    assert prisma.value("aggregate") == {"_sum": {"pages": 370}, "_max": {"pages": 200}}
    assert [row["_count"] for row in prisma.value("groupBy")] == [2, 1]
    assert prisma.value("create") == {"title": "Sketch", "pages": 12, "authorId": 2}
    assert prisma.value("createMany") == {"count": 2}
    assert len(prisma.value("createManyAndReturn")) == 2
    assert prisma.value("update")["pages"] == 51
    assert prisma.value("updateMany")["count"] > 0
    assert prisma.value("delete")["title"] == "Sketch"
    assert prisma.value("$queryRaw of several types") == [
        {
            "int8": True,
            "numeric": "1.5",
            "at": "1970-01-01T00:00:00.000Z",
            "json": {"a": 1},
            "numbers": [1, 2],
            "nothing": None,
        }
    ]
    assert prisma.value("$executeRaw") == 2


def test_prisma_hands_on_the_code_of_postgresql(prisma: Report) -> None:
    """Not its own: P2002 over TCP is 23505 over HTTP."""
    assert prisma.error("failed statement")["code"] == "23505"
    assert prisma.error("failed raw statement")["code"] == "22012"


def test_the_examples_are_typed(examples: Path) -> None:
    """By TypeScript's strict checks."""
    succeeded([tool("tsc"), "--project", "."], examples, {})


def test_the_middleware_redirects(door: Door) -> None:
    """In the edge runtime: what is in its table, and nothing else."""
    found = run(door, "run_middleware.mjs", "/old/a", "/old/b")
    assert found.value("/old/a") == {"status": 308, "location": "https://site.example/new/a"}
    assert found.value("/old/b") is None


def test_the_middleware_lets_a_request_pass_without_its_database(door: Door) -> None:
    """A failed lookup is logged, and the page is served."""
    refused = replace(door, url=with_password(door.url, "wrong"))
    assert run(refused, "run_middleware.mjs", "/old/a").value("/old/a") is None


def test_the_worker_lists_and_adds(door: Door) -> None:
    """In workerd; a value that the database refuses is the client's error."""
    found = run(door, "run_worker.mjs")
    titles = [book["title"] for book in found.value("list")["body"]]
    assert titles == ["Notes", "Compilers", "Letters"]
    added = found.value("add")
    assert (added["status"], added["body"]["title"]) == (201, "Sketch")
    refused = found.value("add one without pages")
    assert (refused["status"], refused["body"]["constraint"]) == (422, "books_pages_check")
    assert found.value("another path")["status"] == 404


def test_the_prisma_example(door: Door, examples: Path) -> None:
    """It uses two operations where one would ask for a transaction."""
    found = run(door, "run_in_workerd.mjs", str(examples / "prisma_example.ts"))
    assert found.value("books of an author") == ["Notes", "Letters"]
    assert found.value("add an author twice") is True
    assert found.value("add a book") == 30
    assert found.value("books of the author") == ["Letters"]
    assert found.value("books of nobody") == []


def test_with_custom_domains_only_the_database_url_changes(cloud: LocalCloud, door: Door) -> None:
    """No `fetchEndpoint`: the driver derives both names, and verifies their certificates."""
    with door_of_domains(cloud) as named:
        assert door.endpoint is not None
        assert named.endpoint is None
        found = run(named, "run_driver.mjs", "@neondatabase/serverless")
    assert found.value("template") == [{"sum": 3}]
    assert found.value("batch by a function") == [[{"one": 1}], [{"two": "two"}]]
    assert found.error("unique violation")["code"] == "23505"
    assert [user["name"] for user in found.value("auth token")] == ["Ada"]
