"""Claims of this transaction only: those that an earlier use left in the session do not count.

Schema changes are additive, but for this one: a function whose layer is older sees no rows on the
new schema, since it does not say which transaction its claims belong to (docs/decisions/0038).
"""

from alembic import op

revision = "lambda_pg_0002"
down_revision = "lambda_pg_0001"

SUBJECT = """
CREATE OR REPLACE FUNCTION current_subject() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE
        WHEN nullif(current_setting('request.jwt.transaction', true), '')::timestamptz
            = CURRENT_TIMESTAMP
        THEN substring(
            nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
            FROM '(?i)^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
        )::uuid
    END
"""
"""One expression without a subquery, so that PostgreSQL inlines it: a function call would cost more
than the comparison."""

BEFORE = """
CREATE OR REPLACE FUNCTION current_subject() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN (
        SELECT CASE WHEN claimed.sub ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                    THEN claimed.sub::uuid END
        FROM (
            SELECT nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub' AS sub
        ) AS claimed
    )
"""


def upgrade() -> None:
    """Accept only claims that were set in this transaction."""
    op.execute(SUBJECT)


def downgrade() -> None:
    """Accept all claims, as functions with an older layer need it."""
    op.execute(BEFORE)
