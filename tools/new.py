"""Write a new project, with an app, one function with its test, one migration, and a Makefile."""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lambda_pg_cdk import PACKAGE, __version__
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import load, read_context
from lambda_pg_cdk.stage.schema import ConfigurationError, describe

TEMPLATE = PACKAGE / "template"
NAME = "my-api"
"""The name of the template's own project."""

PLACES = {
    "gitignore": ".gitignore",  # Git would follow it here, too
}
"""Files of the template that have another name in a project."""

NEXT = """\
{name} is a project now. Type:

  cd {name}
  make setup   # once: packages into .venv and node_modules
  make test
  make up      # a local cloud, without an AWS account
"""


class NewProjectError(ValueError):
    """The project cannot be written; the message says why and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lambda_pg_cdk", description=__doc__)
    parser.add_argument("--version", action="version", version=f"lambda-pg-cdk {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    writing = commands.add_parser("new", help="write a new project into a folder of its name")
    writing.add_argument("name", help="of the project, its folder and its stacks, like my-api")
    name = parser.parse_args(arguments).name
    try:
        write(name, Path.cwd() / name)
    except NewProjectError as error:
        print(error, file=sys.stderr)
        return 1
    print(NEXT.format(name=name), end="")
    return 0


def write(name: str, folder: Path) -> None:
    """Write the project. Raises NewProjectError, with nothing written."""
    _check_name(name)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise NewProjectError(
            f"{folder} exists and is not an empty folder: choose another name, or remove it"
        )
    for source, place in _files():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text(encoding="utf-8")
        target.write_text(text.replace(NAME, name).replace("==VERSION", f"=={__version__}"))
        shutil.copymode(source, target)


def _files() -> Iterator[tuple[Path, str]]:
    """Yield each file and its place in a project."""
    for source in sorted(TEMPLATE.rglob("*")):
        if source.is_file() and "__pycache__" not in source.parts:
            place = source.relative_to(TEMPLATE).as_posix()
            yield source, PLACES.get(place, place)


def _check_name(name: str) -> None:
    """Check that every stage of the project can have this name in the names of its stacks."""
    rule = next(rule for setting, rule, _ in describe(Config) if setting == "app")
    if not re.fullmatch(rule.pattern, name):
        raise NewProjectError(f"the project's name is {name!r}; must be {rule.shape}, like {NAME}")
    text = json.dumps(read_context(TEMPLATE / "cdk.json")).replace(NAME, name)
    context = json.loads(text)
    for stage in context["stages"]:
        try:
            load({**context, "stage": stage}.get)
        except ConfigurationError as error:
            raise NewProjectError(f"the project's name is {name!r}: {error}") from error
