"""The sample's users, each owned by the subject of a verified token."""

from alembic import op

revision = "users_0001"
down_revision = None

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
    op.execute(USERS)
    op.execute("CREATE INDEX users_by_owner ON users (owner, id)")
    op.execute("ALTER TABLE users ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE users FORCE ROW LEVEL SECURITY")
    op.execute(POLICY)
    op.execute("GRANT SELECT, INSERT, UPDATE ON users TO lambda_pg_app")
