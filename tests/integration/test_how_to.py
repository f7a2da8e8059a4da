"""What docs/how-to.md promises, and no other test shows."""

import re

from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.layer import Admin
from tests.support.waiting import wait_until


def test_a_statement_over_a_second_is_in_the_log(admin: Admin, postgres: Postgres) -> None:
    """With its duration. The stacks set the same parameters."""
    admin.execute("SELECT pg_sleep(1.1), 'a slow statement'")

    def logged() -> re.Match[str] | None:
        text = postgres.log.read_text(errors="replace")
        return re.search(r"duration: \d{4,}\.\d+ ms .*'a slow statement'", text)

    wait_until(logged, 10, "the slow statement in the log")
