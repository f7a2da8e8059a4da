"""The warnings of a migration, for the person who deploys to a local cloud."""

import json
from pathlib import Path

from lambda_pg_cdk.local.deployment import migration_log


def line(message: str, level: str = "WARNING", logger: str = "migrate") -> str:
    """Write a line as Lambda's runtime client does."""
    return json.dumps({"level": level, "message": message, "logger": logger}) + "\n"


def test_warnings_since_the_last_deployment_are_read(tmp_path: Path) -> None:
    """Of the migration itself, each once; whatever else is in the log."""
    assert migration_log.size(tmp_path) == 0
    assert migration_log.warnings(tmp_path, 0) == []
    log = tmp_path / "logs" / "migrate.log"
    log.parent.mkdir()
    log.write_text("START\n" + line("table a: …"))
    told = migration_log.size(tmp_path)
    assert migration_log.warnings(tmp_path, 0) == ["table a: …"]
    with log.open("a") as file:
        file.write(line("table b: …") * 2)
        file.write(line("schema is at 0001", "INFO"))
        file.write(line("something else", logger="lambda_pg"))
        file.write("[1]\nnull\n{")
    assert migration_log.warnings(tmp_path, told) == ["table b: …"]
