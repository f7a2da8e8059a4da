"""Orders, each owned by the subject of a verified token.

Schema changes are additive: while a deployment runs, and after it has rolled back, the previous
functions work on the new schema.
"""

from alembic import op

revision = "0001"
down_revision = None

# current_subject() and the role lambda_pg_app are lambda-pg's. The first is the `sub` in
# request.jwt.claims, which `claims=` sets for one transaction.
TABLE = """
CREATE TABLE orders (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    owner uuid NOT NULL DEFAULT current_subject(),
    item text NOT NULL CHECK (char_length(item) BETWEEN 1 AND 200)
)
"""

POLICY = """
CREATE POLICY own_rows ON orders TO lambda_pg_app
    USING (owner = (SELECT current_subject()))
    WITH CHECK (owner = (SELECT current_subject()))
"""


def upgrade() -> None:
    """Apply the revision."""
    op.execute(TABLE)
    op.execute("CREATE INDEX orders_by_owner ON orders (owner, id)")
    op.execute("ALTER TABLE orders ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE orders FORCE ROW LEVEL SECURITY")
    op.execute(POLICY)
    op.execute("GRANT SELECT, INSERT ON orders TO lambda_pg_app")
