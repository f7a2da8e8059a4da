"""Begin a migration: `python -m lambda_pg_cdk.migrations.new "add orders"` writes its file."""

import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import cast

from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError

from .upgrade import SCRIPTS, configure

NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[ _-][A-Za-z0-9]+)*")
LONGEST = 60
"""Characters of a name, which becomes a file's name."""


class NewMigrationError(ValueError):
    """A migration's name, or the existing migrations, are wrong; the message says what to do."""


def main(arguments: list[str]) -> int:
    """Write the revision and print its path; return the exit code."""
    try:
        print(write(" ".join(arguments)))
    except NewMigrationError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def write(name: str, scripts: Path = SCRIPTS) -> Path:
    """Write the revision that follows the newest one; raise NewMigrationError."""
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise NewMigrationError(
            f"the migration's name is {name!r}; must be up to {LONGEST} letters and digits, with a "
            'letter first and single spaces between the words, like "add orders"'
        )
    words = re.sub("[_-]", " ", name.lower())
    directory = ScriptDirectory.from_config(_configure(scripts))
    script = directory.generate_revision(_next(directory), words.capitalize())
    return Path(cast(Script, script).path)  # None stands for a file that is no migration


def _configure(scripts: Path) -> Config:
    """Return settings with which Alembic names the file and prints nothing."""
    config = configure(scripts)
    config.cmd_opts = Namespace(quiet=True)
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    config.set_main_option("truncate_slug_length", str(LONGEST))
    return config


def _next(directory: ScriptDirectory) -> str:
    """Return the number after that of the newest migration."""
    try:
        newest = directory.get_current_head()
    except CommandError as error:
        raise NewMigrationError(
            f"there are several newest migrations, {' and '.join(directory.get_heads())}: set the "
            "down_revision of one to the other"
        ) from error
    if newest is not None and not re.fullmatch(r"[0-9]{4}", newest):
        raise NewMigrationError(
            f"the newest migration is {newest!r}; must be a number of four digits: rename it"
        )
    return f"{int(newest or 0) + 1:04}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
