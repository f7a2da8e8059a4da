"""A Django database backend over the layer's pool: `"ENGINE": "lambda_pg.django"`.

The endpoint, the login and how to wait come from the environment, as for Database.from_env();
`"OPTIONS": {"direct": True}` takes the direct URL, for migrations.
"""

from dataclasses import replace
from functools import cache

from psycopg.rows import TupleRow

from lambda_pg._database import Database
from lambda_pg._settings import Settings


def database(*, direct: bool = False) -> Database[TupleRow]:
    """Return the Database that Django's connections come from: the same one at each call.

    For what Django has no word for: `@database().bind_lambda_context`, `database().stats()`.
    """
    return pooled(Settings.from_env(direct=direct))


def pooled(settings: Settings, dbname: str | None = None) -> Database[TupleRow]:
    """Return the one Database of these settings; `dbname` beats theirs, for Django's tests."""
    return _database(settings if dbname is None else replace(settings, dbname=dbname))


@cache
def _database(settings: Settings) -> Database[TupleRow]:
    return Database(settings)
