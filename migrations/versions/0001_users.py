"""Users, each owned by the subject of a verified token and separated by row-level security."""

from alembic import op

revision = "0001"
down_revision = None

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

USERS = """
CREATE TABLE users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    owner uuid NOT NULL DEFAULT current_subject(),
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
)
"""

POLICY = """
CREATE POLICY own_rows ON users TO lambda_pg_app
    USING (owner = (SELECT current_subject()))
    WITH CHECK (owner = (SELECT current_subject()))
"""


def upgrade() -> None:
    """Apply the revision."""
    op.execute(SUBJECT)
    op.execute(COMMENT)
    op.execute(USERS)
    op.execute("CREATE INDEX users_by_owner ON users (owner, id)")
    op.execute("ALTER TABLE users ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE users FORCE ROW LEVEL SECURITY")
    op.execute(POLICY)
    op.execute("REVOKE ALL ON FUNCTION current_subject() FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION current_subject() TO lambda_pg_app")
    op.execute("GRANT SELECT, INSERT, UPDATE ON users TO lambda_pg_app")
