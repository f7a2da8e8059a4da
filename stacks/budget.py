"""Prove that all the server connections that can exist fit into PostgreSQL's `max_connections`.

Pure arithmetic. The baseline function is deliberately not in it: it is the control of the storm,
and what it shows is a function without a budget.
"""

import math
from dataclasses import dataclass

from stacks.config import Config

MIGRATION = 1
RESERVED = 5
"""superuser_reserved_connections (3) and rds.rds_superuser_reserved_connections (2)."""


class BudgetError(ValueError):
    """Say by how much the server connections exceed `max_connections`, line by line."""


@dataclass(frozen=True)
class Line:
    """One group of server connections."""

    what: str
    connections: int


@dataclass(frozen=True)
class Budget:
    """All server connections that can exist at the same moment."""

    lines: tuple[Line, ...]
    max_connections: int

    @property
    def total(self) -> int:
        """Add all lines up."""
        return sum(line.connections for line in self.lines)

    def explain(self) -> str:
        """Write the arithmetic, one line each."""
        rows = [*self.lines, Line("all together", self.total)]
        rows.append(Line("database.max_connections", self.max_connections))
        return "\n".join(f"  {row.connections:>6}  {row.what}" for row in rows)

    def check(self) -> None:
        """Raise `BudgetError` when the database could run out of connections."""
        if self.total <= self.max_connections:
            return
        over = self.total - self.max_connections
        raise BudgetError(
            f"the server connections that can exist are {over} more than the database accepts:\n"
            f"{self.explain()}\n"
            "Lower pooler.max_db_connections or pooler.tasks, or raise database.max_connections "
            "(and database.instance_class, if its memory does not carry them)."
        )


def budget_of(config: Config) -> Budget:
    """Add up what a stage can open: the pooler in the middle of a deployment, and the rest."""
    pooler = config.pooler
    tasks = rolling_tasks(pooler.tasks, pooler.maximum_percent)
    return Budget(
        lines=(
            Line(
                f"pooler: {tasks} tasks during a deployment ({pooler.tasks} at "
                f"{pooler.maximum_percent} %), {pooler.max_db_connections} server connections each",
                tasks * pooler.max_db_connections,
            ),
            Line("migration, over the direct address", MIGRATION),
            Line("administrators and a rotation", config.database.other_connections),
            Line("reserved by PostgreSQL and RDS for superusers", RESERVED),
        ),
        max_connections=config.database.max_connections,
    )


def rolling_tasks(tasks: int, maximum_percent: int) -> int:
    """Count the tasks that ECS may run at once: it rounds the upper limit down."""
    return max(tasks, math.floor(tasks * maximum_percent / 100))
