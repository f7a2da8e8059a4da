"""Begin a migration: `python -m lambda_pg_cdk.migrations.new "add orders"` writes its file."""

import re
import sys
from pathlib import Path
from string import Template

from lambda_pg_cdk import PROJECT

from .revisions import HERE, Branch, MigrationError, read

NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[ _-][A-Za-z0-9]+)*")
LONGEST = 60
"""Characters of a name, which becomes a file's name."""

TABLE = re.compile(r"(?:add|create)(?: table)? ([a-z][a-z0-9]*)")
"""A name that asks for a table: the file then makes one that functions can use."""


class NewMigrationError(ValueError):
    """A migration's name is wrong; the message says what to do."""


def main(arguments: list[str]) -> int:
    """Write the revision and print its path; return the exit code."""
    try:
        print(write(" ".join(arguments)))
    except (NewMigrationError, MigrationError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def write(name: str, folder: Path = PROJECT / "migrations") -> Path:
    """Write the revision that follows the newest one of a folder.

    Raise `NewMigrationError`, or `MigrationError` for a folder whose revisions are not one line.
    """
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise NewMigrationError(
            f"the migration's name is {name!r}; must be up to {LONGEST} letters and digits, with a "
            'letter first and single spaces between the words, like "add orders"'
        )
    words = re.sub("[_-]", " ", name.lower())
    newest = read(Branch(folder))[-1:]
    number = f"{int(newest[0].id) + 1 if newest else 1:04}"
    table = TABLE.fullmatch(words)
    template = Template((HERE / f"new_{'table' if table else 'change'}.txt").read_text())
    path = folder / f"{number}_{words.replace(' ', '_')}.py"
    folder.mkdir(exist_ok=True)
    path.write_text(
        template.substitute(
            title=words.capitalize(),
            revision=number,
            follows=f'"{newest[0].id}"' if newest else None,
            table=table[1] if table else None,
        )
    )
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
