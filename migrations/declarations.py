"""What `/sql`'s trust levels may do with tables, as the project's file declares it."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .level_names import LEVELS
from .revisions import MigrationError, place

FILE = "sql_access.toml"
"""The file's name, in the folder of the migrations."""

CHANGES = ("INSERT", "UPDATE", "DELETE")

VERBS: Mapping[str, tuple[str, ...]] = {
    level: ("SELECT",) if level == "reader" else ("SELECT", *CHANGES) for level in LEVELS
}
"""The verbs that can be declared for each level."""

EXAMPLE = '[reader.orders] and verbs = ["SELECT"]'


class AccessError(MigrationError):
    """A declaration cannot be applied; nothing was changed."""


@dataclass(frozen=True)
class Grant:
    """One table of one level: its verbs, and the condition for rows that the level can reach."""

    level: str
    schema: str
    table: str
    verbs: tuple[str, ...]
    rows: str | None
    place: str
    """The file and the entry, for messages."""

    @property
    def name(self) -> str:
        """The table as the file names it."""
        return self.table if self.schema == "public" else f"{self.schema}.{self.table}"


def read_access(folders: Sequence[Path]) -> list[Grant]:
    """Read the file of each folder that has one; raise `AccessError`.

    If two files declare the same level and table, the later one counts: the project's.
    """
    found = [grant for folder in folders for grant in _read_file(folder / FILE)]
    return list({(grant.level, grant.schema, grant.table): grant for grant in found}.values())


def _read_file(path: Path) -> Iterator[Grant]:
    if not path.is_file():
        return
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of TOML, or it is not UTF-8
        raise AccessError(f"{place(path)}: {error}") from error
    for level, tables in content.items():
        if level not in LEVELS or not isinstance(tables, dict):
            raise AccessError(
                f"{place(path)}: it has {level!r}; must have entries of the trust levels "
                f"{', '.join(LEVELS)} only, as in {EXAMPLE}"
            )
        for name, entry in tables.items():
            yield _grant(level, name, entry, f"{place(path)}, [{level}.{_key(name)}]")


def _key(name: str) -> str:
    return f'"{name}"' if "." in name else name


def _grant(level: str, name: str, entry: object, where: str) -> Grant:
    schema, _, table = name.rpartition(".")
    if not isinstance(entry, dict) or not table or "." in schema:
        raise AccessError(f"{where}: the entry must have a table and its verbs, as in {EXAMPLE}")
    if unknown := sorted(entry.keys() - {"verbs", "rows"}):
        raise AccessError(
            f"{where}: it has {unknown[0]!r}; may have verbs and rows only. Write a table of "
            f'another schema in quotes, as in [{level}."{name}.{unknown[0]}"]'
        )
    verbs, rows = entry.get("verbs"), entry.get("rows")
    if not isinstance(verbs, list) or not all(verb in VERBS[level] for verb in verbs):
        raise AccessError(
            f"{where}: verbs is {verbs!r}; must be a list of verbs that the level {level} can "
            f"have: {', '.join(VERBS[level])}"
        )
    if rows is not None and (not isinstance(rows, str) or not rows.strip()):
        raise AccessError(
            f"{where}: rows is {rows!r}; must be an SQL condition, as in a policy's USING, or be "
            "left out"
        )
    return Grant(level, schema or "public", table, tuple(verbs), rows, where)
