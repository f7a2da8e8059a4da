"""The subject of a verified token, which the policies of the app's tables compare with."""

from alembic import op

revision = "lambda_pg_0001"
down_revision = None
branch_labels = ("lambda_pg",)

SUBJECT = """
CREATE FUNCTION current_subject() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN (
        SELECT CASE WHEN claimed.sub ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                    THEN claimed.sub::uuid END
        FROM (
            SELECT nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub' AS sub
        ) AS claimed
    )
"""

COMMENT = """
COMMENT ON FUNCTION current_subject() IS
    'The sub of the verified token of this transaction; NULL, which owns nothing, without one'
"""


def upgrade() -> None:
    """Apply the revision."""
    op.execute(SUBJECT)
    op.execute(COMMENT)
    op.execute("REVOKE ALL ON FUNCTION current_subject() FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION current_subject() TO lambda_pg_app")
