"""How many connections a stage's database accepts, and what it keeps for itself."""

from stacks.config import Config
from stacks.sizes import connections_of_acus, connections_of_class

RESERVED = 5
"""superuser_reserved_connections (3) and rds.rds_superuser_reserved_connections (2)."""


def max_connections(config: Config) -> tuple[int, str]:
    """Return how many connections the stage's database accepts, and where the number is from."""
    database = config.database
    if database.max_connections is not None:
        return database.max_connections, "database.max_connections"
    if database.kind == "aurora":
        most = connections_of_acus(database.min_acu, database.max_acu)
        return most, f"RDS's default for up to {database.max_acu:g} ACU"
    most = connections_of_class(database.instance_class)
    return most, f"RDS's default for {database.instance_class}, less than the least it may be"
