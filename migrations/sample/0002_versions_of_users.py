"""Users have a version, which every UPDATE increments, and names of 2 to 50 characters.

Rows whose names do not fit stay readable, and keep their names until somebody changes the row:
PostgreSQL checks each row that is written from now on. The constraint stays NOT VALID as long as
there are such rows (docs/upgrading.md).
"""

import logging

from alembic import op

revision = "users_0002"
down_revision = "users_0001"

logger = logging.getLogger("migrate")

COUNT_UP = """
CREATE FUNCTION count_up_version() RETURNS trigger
    LANGUAGE plpgsql
    AS 'BEGIN NEW.version := OLD.version + 1; RETURN NEW; END'
"""

TRIGGER = """
CREATE TRIGGER count_up_version BEFORE UPDATE ON users
    FOR EACH ROW EXECUTE FUNCTION count_up_version()
"""

FITS = r"char_length(name) BETWEEN 2 AND 50 AND name = btrim(name, E' \t\n\v\f\r')"
"""What the API accepts: it also strips spaces that are not ASCII."""

NARROW = f"""
ALTER TABLE users DROP CONSTRAINT users_name_check,
    ADD CONSTRAINT users_name_fits CHECK ({FITS}) NOT VALID
"""

LEFT = f"SELECT count(*) FROM users WHERE NOT ({FITS})"  # noqa: S608 - a constant of this module

REMEDY = (
    "table users: %s rows have a name that is not 2 to 50 characters without spaces around it. "
    "They stay as they are, and an UPDATE that keeps the name fails. Correct them, then: "
    "ALTER TABLE users VALIDATE CONSTRAINT users_name_fits;"
)


def upgrade() -> None:
    """Apply the revision."""
    op.execute("ALTER TABLE users ADD COLUMN version bigint NOT NULL DEFAULT 1")
    op.execute(COUNT_UP)
    op.execute("REVOKE ALL ON FUNCTION count_up_version() FROM PUBLIC")
    op.execute(TRIGGER)
    op.execute(NARROW)
    if left := count_left():
        logger.warning(REMEDY, left)
    else:
        op.execute("ALTER TABLE users VALIDATE CONSTRAINT users_name_fits")


def count_left() -> int:
    """Count the rows that do not fit; row-level security hides all rows from the owner, too."""
    op.execute("ALTER TABLE users NO FORCE ROW LEVEL SECURITY")
    left: int = op.get_bind().exec_driver_sql(LEFT).scalar_one()
    op.execute("ALTER TABLE users FORCE ROW LEVEL SECURITY")
    return left
