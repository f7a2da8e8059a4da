"""Bring the schema to the newest revision over one psycopg connection."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import Connection
from sqlalchemy import create_engine, engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

SCRIPTS = Path(__file__).resolve().parent


class MigrationError(RuntimeError):
    """A revision failed; the message has the cause, and the schema is unchanged."""


@dataclass
class Outcome:
    """The revision of the schema, and the revisions that were applied."""

    revision: str | None
    applied: list[str] = field(default_factory=list)


def upgrade(connection: Connection[Any], scripts: Path = SCRIPTS) -> Outcome:
    """Apply all missing revisions or none; the connection is closed afterwards.

    A revision that these scripts do not know is left as it is: after a rollback the older version
    may be invoked by hand against the newer schema, and must not fail for it.
    """
    config = configure(scripts)
    directory = ScriptDirectory.from_config(config)
    with _engine(connection).connect() as session:
        current = MigrationContext.configure(session).get_current_revision()
        session.rollback()
        pending = _pending(directory, current)
        outcome = Outcome(current)
        if not pending:
            return outcome
        config.attributes.update(connection=session, applied=outcome.applied)
        try:
            command.upgrade(config, "head")
        except Exception as error:
            raise MigrationError(_explain(pending, outcome.applied, error)) from error
    outcome.revision = pending[-1]
    return outcome


def configure(scripts: Path) -> Config:
    """Return the settings that Alembic otherwise reads from a file."""
    config = Config()
    config.set_main_option("script_location", str(scripts))
    config.set_main_option("path_separator", "os")
    return config


def _pending(directory: ScriptDirectory, current: str | None) -> list[str]:
    known = {script.revision for script in directory.walk_revisions()}
    if current is not None and current not in known:
        return []
    revisions = directory.iterate_revisions("head", current or "base")
    return [script.revision for script in revisions][::-1]


def _engine(connection: Connection[Any]) -> engine.Engine:
    """Give SQLAlchemy the connection that the layer has opened, with TLS and password."""

    def lend() -> Connection[Any]:
        connection.autocommit = False
        return connection

    return create_engine("postgresql+psycopg://", creator=lend, poolclass=NullPool)


def _explain(pending: list[str], applied: list[str], error: Exception) -> str:
    # SQLAlchemy's message has the statement with its values; PostgreSQL's does not.
    cause = error.orig if isinstance(error, DBAPIError) else error
    failed = pending[len(applied)] if len(applied) < len(pending) else pending[-1]
    reason = str(cause).strip() or type(cause).__name__
    return f"migration {failed} failed and the schema is as it was: {reason}"
