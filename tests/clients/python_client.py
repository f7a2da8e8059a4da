"""What PyPI's neon-serverless does over POST /sql, in both variants: `sync` and `async`.

    DATABASE_URL=… SQL_ENDPOINT=… python python_client.py sync

It runs in a separate virtual environment (requirements.txt), and prints JSON.
"""

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from neon_serverless import NeonDbError, neon, neon_async

MADE = {"sync": neon, "async": neon_async}


def checks(sql: Any) -> dict[str, Callable[[], Any]]:
    """Name what is tried; a result may be a coroutine's."""
    numbers = [("SELECT $1::int AS n", [1]), "SHOW transaction_isolation"]
    strict = {"isolation_level": "Serializable", "read_only": True, "deferrable": True}
    twice = [("INSERT INTO authors (name) VALUES ($1)", [name]) for name in ("Nobody", "Ada")]
    return {
        "query": lambda: sql("SELECT id, name FROM authors WHERE id = $1", [1]),
        "parameters of each type": lambda: sql(
            "SELECT $1::int AS number, $2::bool AS bool, $3::float8 AS float, $4::text AS nothing,"
            " $5::text[] AS texts, $6::jsonb AS json, $7 AS text",
            [5, True, 0.5, None, ["a", None], {"a": [1]}, "ä"],
        ),
        "array mode": lambda: sql("SELECT 1 AS a, 2 AS a", array_mode=True),
        "full results": lambda: sql("SELECT id FROM authors ORDER BY id", full_results=True),
        "insert": lambda: sql("INSERT INTO authors (name) VALUES ('Barbara') RETURNING name"),
        "batch": lambda: sql.transaction(numbers),
        "strict batch": lambda: sql.transaction(numbers, **strict),
        "write in read only": lambda: sql.transaction(["DELETE FROM books"], read_only=True),
        "failed batch": lambda: sql.transaction(twice),
        "failed batch left nothing": lambda: sql("SELECT 1 FROM authors WHERE name = 'Nobody'"),
        "syntax error": lambda: sql("SELECT 1 FRM books"),
    }


async def reported(check: Callable[[], Any]) -> dict[str, Any]:
    """Return a check's value or error."""
    try:
        value = check()
        return {"value": await value if inspect.isawaitable(value) else value}
    except NeonDbError as error:
        return {"error": vars(error)}


async def main(face: str) -> None:
    """Run all checks one after the other."""
    sql: Any = MADE[face](os.environ["DATABASE_URL"], endpoint=os.environ["SQL_ENDPOINT"])
    found = {name: await reported(check) for name, check in checks(sql).items()}
    print(json.dumps(found, default=vars))
    if face == "async":
        await sql.aclose()
    else:
        sql.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
