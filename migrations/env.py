"""What Alembic runs: every pending revision in one transaction, so that a failure leaves none."""

from collections.abc import Collection, Mapping
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo

applied: list[str] = context.config.attributes["applied"]


def note(
    ctx: MigrationContext,  # noqa: ARG001 - Alembic passes all four by these names
    step: MigrationInfo,
    heads: Collection[Any],  # noqa: ARG001 - Alembic passes it
    run_args: Mapping[str, Any],  # noqa: ARG001 - Alembic passes it
) -> None:
    """Remember a revision that has been applied."""
    applied.append(step.up_revision_ids[0])


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=None,
    transaction_per_migration=False,
    on_version_apply=note,
)
with context.begin_transaction():
    context.run_migrations()
context.config.attributes["connection"].commit()
