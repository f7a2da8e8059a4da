"""${message}.

Schema changes are additive: while a deployment runs, and after it has rolled back, the previous
functions work on the new schema.
"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Apply the revision."""
    op.execute(
        """
        """
    )
