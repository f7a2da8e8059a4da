"""What a database lacks: its rows of alembic_version against the revisions of each branch."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from .revisions import BASE, SAMPLE, Branch, MigrationError, Revision

ONE_LINE = {
    "0001": {"lambda_pg_0001", "users_0001"},
    "0002": {"lambda_pg_0002", "users_0001"},
}
"""Revisions of the time when base and sample were one line, and what they are now."""


@dataclass
class Plan:
    """The rows that alembic_version should have at the start, and what to apply then."""

    rows: set[str]
    pending: list[Revision] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a person should know of rows that no file is for."""


def is_one_line(rows: Collection[str], *, has_claims: bool) -> bool:
    """Tell whether rows are from before the branches; `has_claims`: current_subject() exists.

    Without that function they are those of another Alembic project.
    """
    return has_claims and bool(rows) and not any(BASE.has(row) for row in rows)


def split(rows: Collection[str]) -> set[str]:
    """Translate rows from before the branches: a project's later revision followed 0002."""
    return {each for row in rows for each in ONE_LINE.get(row, {row, *ONE_LINE["0002"]})}


def make_plan(rows: Collection[str], branches: Sequence[tuple[Branch, Sequence[Revision]]]) -> Plan:
    """Compare the rows with each branch, in the order in which the branches are applied.

    Raise `MigrationError` for a row whose file is missing. A row that is newer than every file is
    left as it is, with a note: after going back to an older version that is right.
    """
    plan = Plan(set(rows))
    strangers = {row for row in rows if not SAMPLE.has(row)}  # a stage may have no sample any more
    for branch, revisions in branches:
        mine = sorted(row for row in rows if branch.has(row))
        strangers -= set(mine)
        known = [revision.id for revision in revisions]
        if not mine:
            plan.pending += revisions
        elif mine[-1] in known:
            plan.pending += revisions[known.index(mine[-1]) + 1 :]
        elif known and mine[-1] <= known[-1]:
            raise MigrationError(_deleted(mine[-1], branch, known))
        else:
            plan.notes.append(_newer(mine[-1], branch, known))
    if strangers:
        raise MigrationError(_foreign(min(strangers)))
    return plan


def _deleted(row: str, branch: Branch, known: Sequence[str]) -> str:
    before = [each for each in known if each < row]
    statement = (
        f"UPDATE alembic_version SET version_num = '{before[-1]}'"  # noqa: S608 - for a person
        if before
        else "DELETE FROM alembic_version"
    )
    return (
        f"the database has the migration {row}, and {branch.folder.name}/ has no file for it: it "
        "was deleted or renumbered. Nothing was changed. Restore the file. If the database no "
        f"longer has what that migration made, run this as the owner, then deploy again: "
        f"{statement} WHERE version_num = '{row}'"
    )


def _newer(row: str, branch: Branch, known: Sequence[str]) -> str:
    newest = f"is {known[-1]}" if known else "does not exist"
    return (
        f"the database has the migration {row}, and the newest one in {branch.folder.name}/ "
        f"{newest}: the schema stays as it is. That is right after going back to an older version. "
        "If the file was deleted, restore it"
    )


def _foreign(row: str) -> str:
    return (
        f"the table alembic_version has {row!r}, which is no migration of this project. Nothing "
        "was changed. If another project's Alembic uses this database, give it another table "
        "(version_table in its env.py) and move the row there; else delete the row, then deploy "
        "again"
    )
