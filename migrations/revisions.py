"""The revisions of one folder, in their order, read from the files without running them."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

FILES = "[0-9][0-9][0-9][0-9]_*.py"
"""Names of revisions; a folder may have other files, which are not read."""


class MigrationError(RuntimeError):
    """A migration cannot be applied; the message has the cause, and the schema is unchanged."""


@dataclass(frozen=True)
class Branch:
    """A folder whose revisions follow one another; their ids are the prefix and four digits."""

    folder: Path
    prefix: str = ""

    def has(self, revision: str) -> bool:
        """Tell whether an id is one of this branch, known or not."""
        return re.fullmatch(f"{self.prefix}[0-9]{{4}}", revision) is not None


BASE = Branch(HERE / "base", "lambda_pg_")
"""What every stage has: the claims."""

SAMPLE = Branch(HERE / "sample", "users_")
"""The tables of the samples."""


@dataclass(frozen=True)
class Revision:
    """One file of a branch."""

    id: str
    follows: str | None
    path: Path

    def place(self, line: int | None = None) -> str:
        """Name the file, and a line of it, as in a message."""
        return place(self.path, line)


def place(path: Path, line: int | None = None) -> str:
    """Name a file by its folder and its name, and a line of it."""
    name = f"{path.parent.name}/{path.name}"
    return name if line is None else f"{name}, line {line}"


def read(branch: Branch) -> list[Revision]:
    """Return the revisions of a branch from the first to the newest.

    An absent folder has none. Raise `MigrationError` unless each follows the one before.
    """
    found: dict[str, Revision] = {}
    followers: dict[str | None, Revision] = {}
    for path in sorted(branch.folder.glob(FILES)):
        revision = _read_file(path, branch)
        twin = found.setdefault(revision.id, revision)
        sibling = followers.setdefault(revision.follows, revision)
        if twin is not revision or sibling is not revision:
            raise MigrationError(_forked(twin if twin is not revision else sibling, revision))
    ordered: list[Revision] = []
    while last := followers.pop(ordered[-1].id if ordered else None, None):
        ordered.append(last)
    if followers:
        raise MigrationError(_loose(min(followers.values(), key=lambda each: each.id)))
    return ordered


def _read_file(path: Path, branch: Branch) -> Revision:
    """Read `revision` and `down_revision`; raise `MigrationError`."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), path.name)
        compile(tree, path.name, "exec")
    except SyntaxError as error:
        raise MigrationError(f"{place(path, error.lineno)}: {error.msg}") from error
    except ValueError as error:  # it is not UTF-8, or has a NUL
        raise MigrationError(f"{place(path)}: {error}") from error
    values = _values(tree)
    number = f"{branch.prefix}{path.name[:4]}"
    if values.get("revision") != repr(number):
        raise MigrationError(
            f"{place(path)}: its revision is {values.get('revision', 'missing')}; must be "
            f"{number!r}, the number that begins the file's name"
        )
    follows = values.get("down_revision", "missing")
    if follows != "None" and not follows.startswith("'"):
        raise MigrationError(
            f"{place(path)}: its down_revision is {follows}; must be the revision before it, or "
            "None for the first one"
        )
    return Revision(number, None if follows == "None" else follows.strip("'"), path)


def _values(tree: ast.Module) -> dict[str, str]:
    """Return what a file assigns to names at its top level, in Python's own form."""
    values: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        names = [each.id for each in targets if isinstance(each, ast.Name)]
        values |= dict.fromkeys(names, ast.unparse(value))
    return values


def _forked(one: Revision, other: Revision) -> str:
    if one.id == other.id:
        return (
            f"{one.place()} and {other.path.name} have the same number: give the newer one the "
            "next number, in its name and in its revision, and let it follow the other"
        )
    before = "are both the first" if one.follows is None else f"both follow {one.follows!r}"
    return (
        f"{one.place()} and {other.path.name} {before}: set the down_revision of the newer one to "
        f"{one.id!r}"
    )


def _loose(revision: Revision) -> str:
    return (
        f"{revision.place()} follows {revision.follows!r}, and no file of the folder has that "
        "revision: it was deleted or renamed. Restore that file, or set down_revision to the "
        "revision before it (None for the first one)"
    )
