"""What the pooler's container is given, without the CDK."""

RUN_DIR = "/run/pgbouncer"
"""The only folder that can be written to."""

OPEN_FILES = 65536
"""Files that a task may have open."""

ALIVE_SECONDS = 10
"""The health check fails when the supervisor's file is older; it is renewed every second while
PgBouncer answers or works."""


def healthy_command(run_dir: str) -> str:
    """Return the shell command that succeeds while the supervisor renews its file."""
    return f"find {run_dir} -name alive -newermt '{ALIVE_SECONDS} seconds ago' | grep -q ."


def sql_database(name: str) -> str:
    """Return the second name of a database in PgBouncer, which is for `POST /sql`.

    The supervisor derives the same name (pgbouncer/settings.py).
    """
    return f"{name}_sql"
