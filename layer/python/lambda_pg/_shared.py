"""The Databases of frameworks that make their connections themselves: one for each Settings."""

from dataclasses import replace
from typing import Final

from psycopg.rows import TupleRow

from lambda_pg._database import Database
from lambda_pg._settings import Settings


def database(*, direct: bool = False) -> Database[TupleRow]:
    """Return the Database of the framework's connections: the same one at each call.

    For what a framework has no name for: `@database().bind_lambda_context`, `database().stats()`.
    `direct` takes the direct URL, for migrations.
    """
    return pooled(Settings.from_env(direct=direct))


def pooled(settings: Settings, dbname: str | None = None) -> Database[TupleRow]:
    """Return the one Database of these settings; `dbname` beats theirs, for Django's tests."""
    key = settings if dbname is None else replace(settings, dbname=dbname)
    return _DATABASES.get(key) or _DATABASES.setdefault(key, Database(key))


def close_idle() -> None:
    """Close the idle connections of all of them: a database is about to be dropped or copied."""
    for each in list(_DATABASES.values()):
        each.close()


_DATABASES: Final[dict[Settings, Database[TupleRow]]] = {}
