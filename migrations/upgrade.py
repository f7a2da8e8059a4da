"""Bring the schema to the newest revisions over one psycopg connection."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from alembic.operations import Operations
from psycopg import Connection
from sqlalchemy import create_engine, engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from .plan import Plan, is_one_line, make_plan, split
from .revisions import BASE, SAMPLE, Branch, MigrationError, Revision, read
from .tables import find_warnings, list_tables

__all__ = ["BASE", "BRANCHES", "SAMPLE", "Branch", "MigrationError", "Outcome", "upgrade"]

BRANCHES = tuple(branch for branch in (BASE, SAMPLE) if branch.folder.is_dir())
"""The branches of this package: the zip of a stage without the sample API has no sample."""

VERSIONS = text(
    "CREATE TABLE IF NOT EXISTS alembic_version (version_num varchar(32) NOT NULL,"
    " CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
)
"""Alembic's own table, with one row for each branch."""

REMOVE = text("DELETE FROM alembic_version WHERE version_num = :revision")
ADD = text("INSERT INTO alembic_version (version_num) VALUES (:revision)")
HAS_CLAIMS = text("SELECT to_regprocedure('current_subject()') IS NOT NULL")


@dataclass
class Outcome:
    """The newest revision of each branch, those that were applied, and what a person should do."""

    revisions: list[str]
    applied: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


Finish = Callable[[Connection[Any]], list[str]]
"""What ends a migration's transaction: it raises `MigrationError`, or returns warnings."""


def _do_nothing(_: Connection[Any]) -> list[str]:
    return []


def upgrade(
    connection: Connection[Any],
    branches: Sequence[Branch] = BRANCHES,
    *,
    shared: bool = False,
    finish: Finish = _do_nothing,
) -> Outcome:
    """Apply all missing revisions or none; the connection is closed afterwards.

    The branches are applied in their order: the base, the sample, the app's. In a database that is
    `shared`, tables that were there before are not checked for missing grants. `finish` is called
    in the same transaction, after the revisions. Raise `MigrationError`.

    A revision that is newer than these files is left as it is: after a rollback the older version
    may be invoked by hand against the newer schema, and must not fail for it.
    """
    lines = [(branch, read(branch)) for branch in branches]
    with _engine(connection).connect() as session:
        rows = MigrationContext.configure(session).get_current_heads()
        one_line = is_one_line(rows, has_claims=bool(session.scalar(HAS_CLAIMS)))
        session.rollback()
        plan = make_plan(split(rows) if one_line else rows, lines)
        others = list_tables(connection) if shared else frozenset()
        connection.rollback()
        finished = _apply(session, rows, plan, lambda: finish(connection))
        warnings = [*plan.notes, *find_warnings(connection, others), *finished]
        connection.rollback()
    applied = [revision.id for revision in plan.pending]
    reached = [
        max([row for row in plan.rows if branch.has(row)] + [each.id for each in revisions])
        for branch, revisions in lines
        if revisions or any(branch.has(row) for row in plan.rows)
    ]
    return Outcome(reached, applied, warnings)


def _apply(
    session: engine.Connection, rows: Sequence[str], plan: Plan, finish: Callable[[], list[str]]
) -> list[str]:
    """Run what is pending and `finish`, in one transaction; raise `MigrationError`."""
    context = MigrationContext.configure(session)
    running = plan.pending[0] if plan.pending else None
    try:
        with context.begin_transaction(), Operations.context(context):
            if plan.pending or plan.rows != set(rows):
                session.execute(VERSIONS)
            for row in set(rows) - plan.rows:
                session.execute(REMOVE, {"revision": row})
            for row in plan.rows - set(rows):
                session.execute(ADD, {"revision": row})
            for running in plan.pending:
                _load(running.path).upgrade()
                session.execute(REMOVE, {"revision": running.follows})
                session.execute(ADD, {"revision": running.id})
            return finish()
    except MigrationError:
        raise
    except Exception as error:
        raise MigrationError(_explain(running, error)) from error


def _load(path: Path) -> Any:
    """Import a revision's file."""
    spec = spec_from_file_location(f"migration_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # noqa: PT018, S101 - it is a .py file
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _engine(connection: Connection[Any]) -> engine.Engine:
    """Give SQLAlchemy the connection that the layer has opened, with TLS and password."""

    def lend() -> Connection[Any]:
        connection.autocommit = False
        return connection

    return create_engine("postgresql+psycopg://", creator=lend, poolclass=NullPool)


def _explain(revision: Revision | None, error: Exception) -> str:
    # SQLAlchemy's message has the statement with its values; PostgreSQL's does not.
    cause = error.orig if isinstance(error, DBAPIError) else error
    reason = str(cause).strip()
    if cause is error or not reason:
        reason = f"{type(cause).__name__}: {reason}".rstrip(": ")
    if revision is None:
        return f"alembic_version could not be split into branches; it is as it was: {reason}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(revision.path)]
    place = revision.place(lines[-1] if lines else None)
    return f"migration {revision.id} ({place}) failed and the schema is as it was: {reason}"
