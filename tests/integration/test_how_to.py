"""What docs/how-to.md promises, and the page that it links, where no other test shows it."""

import json
import re
import uuid
from pathlib import Path

import psycopg
import pytest
from lambda_pg._connection import SET_CLAIMS
from psycopg import errors
from psycopg.rows import TupleRow

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations.new import write
from tests.support.layer import Admin
from tests.support.targets import Target, new_target
from tests.support.waiting import wait_until


def test_a_statement_over_a_second_is_in_the_log(admin: Admin, postgres: Postgres) -> None:
    """With its duration. The stacks set the same parameters."""
    admin.execute("SELECT pg_sleep(1.1), 'a slow statement'")

    def logged() -> re.Match[str] | None:
        text = postgres.log.read_text(errors="replace")
        return re.search(r"duration: \d{4,}\.\d+ ms .*'a slow statement'", text)

    wait_until(logged, 10, "the slow statement in the log")


def test_its_migrations_are_applied(postgres: Postgres, tmp_path: Path) -> None:
    """Each name of the page makes a migration that runs as it is, and the table has no warning."""
    page = (PROJECT / "docs" / "how-to.md").read_text()
    names = re.findall(r'(?m)^    make migration NAME="(.*)"$', page)
    assert len(names) == 2
    for name in names:
        write(name, tmp_path)
    with new_target(postgres) as target:
        assert target.migrate(tmp_path).warnings == []
        assert "invoices" in target.tables()


def test_lost_rows_come_back(postgres: Postgres, tmp_path: Path) -> None:
    """By the page's statements, as the owner, from a database with row-level security."""
    page = (PROJECT / "docs" / "operations.md").read_text()
    section = page.partition("\n## Rows from a backup\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"(?s)```sql\n(.*?)```", section)
    out, back = block.split("\n\n")
    subject = str(uuid.uuid4())
    with new_target(postgres) as target:
        write("add orders", tmp_path)
        target.migrate(tmp_path)
        assert [count_after(target, subject, "INSERT INTO orders DEFAULT VALUES") for _ in "ab"]
        with psycopg.connect(target.dsn, autocommit=True) as owner:
            with pytest.raises(errors.InsufficientPrivilege):
                owner.execute("SET row_security = off; SELECT FROM orders")  # as pg_dump does
            run(owner, out, tmp_path)
            owner.execute("ALTER TABLE orders FORCE ROW LEVEL SECURITY")
        lost = "DELETE FROM orders WHERE id = (SELECT id FROM orders LIMIT 1)"
        assert count_after(target, subject, lost) == 1
        with psycopg.connect(target.dsn, autocommit=True) as owner:
            run(owner, back, tmp_path)
            forced = "SELECT relforcerowsecurity FROM pg_class WHERE relname = 'orders'"
            assert owner.execute(forced).fetchone() == (True,)
        assert count_after(target, subject, "SELECT") == 2


def count_after(target: Target, subject: str, statement: str) -> object:
    """Run a statement as the application for a subject; count the subject's orders."""
    with target.connect() as connection:
        claims = json.dumps({"sub": subject})
        connection.execute(SET_CLAIMS.replace(b"$1", b"%s"), [claims])
        connection.execute(statement.encode())
        row = connection.execute("SELECT count(*) FROM orders").fetchone()
        return row and row[0]


def run(owner: psycopg.Connection[TupleRow], lines: str, folder: Path) -> None:
    """Run lines as psql does."""
    for line in lines.strip().splitlines():
        copied = re.fullmatch(r"\\copy (\w+) (TO|FROM) ([\w.]+)", line)
        if copied is None:
            owner.execute(line.encode())
            continue
        table, direction, name = copied.groups()
        end = "STDOUT" if direction == "TO" else "STDIN"
        with owner.cursor().copy(f"COPY {table} {direction} {end}".encode()) as copy:
            if direction == "TO":
                (folder / name).write_bytes(b"".join(copy))
            else:
                copy.write((folder / name).read_bytes())
