"""The second sample's notes, each owned by the subject of a verified token."""

from alembic import op

revision = "users_0003"
down_revision = "users_0002"

NOTES = """
CREATE TABLE notes (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    owner uuid NOT NULL DEFAULT current_subject(),
    text text NOT NULL CHECK (char_length(text) BETWEEN 1 AND 1000),
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now()
)
"""

TRIGGER = """
CREATE TRIGGER count_up_version BEFORE UPDATE ON notes
    FOR EACH ROW EXECUTE FUNCTION count_up_version()
"""

POLICY = """
CREATE POLICY own_rows ON notes TO lambda_pg_app
    USING (owner = (SELECT current_subject()))
    WITH CHECK (owner = (SELECT current_subject()))
"""


def upgrade() -> None:
    """Apply the revision."""
    op.execute(NOTES)
    op.execute("CREATE INDEX notes_by_owner ON notes (owner, id)")
    op.execute(TRIGGER)
    op.execute("ALTER TABLE notes ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE notes FORCE ROW LEVEL SECURITY")
    op.execute(POLICY)
    op.execute("GRANT SELECT, INSERT ON notes TO lambda_pg_app")
