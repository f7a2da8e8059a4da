"""${message}.

Schema changes are additive: while a deployment runs, and after it has rolled back, the previous
functions work on the new schema.
"""

from alembic import op

revision = "${up_revision}"
down_revision = ${f'"{down_revision}"' if down_revision else None}


def upgrade() -> None:
    """Apply the revision."""
    op.execute(
        """
        """
    )
