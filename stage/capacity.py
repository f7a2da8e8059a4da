"""How many connections a stage's database accepts, by its settings or by RDS's defaults."""

import math

from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.messages import problem

RESERVED = 5
"""superuser_reserved_connections (3) and rds.rds_superuser_reserved_connections (2)."""

LARGEST = 5000
"""The largest result of RDS's formula, for any memory."""

CONNECTION_BYTES = 9_531_392
"""RDS's default is LEAST(DBInstanceClassMemory / 9531392, 5000)."""

ACU_LIMIT_WHEN_PAUSING = 2000
"""Aurora's largest result when the smallest size is 0.5 ACU or less."""

_GIB = {
    "micro": 1, "small": 2, "medium": 4, "large": 8, "xlarge": 16, "2xlarge": 32, "4xlarge": 64,
    "8xlarge": 128, "12xlarge": 192, "16xlarge": 256, "24xlarge": 384,
}  # fmt: skip
"""Memory of the sizes of the t and m families; r has twice as much."""


class UnknownClassError(ValueError):
    """The memory of an instance class is not known here."""


def connections_of_class(name: str) -> int:
    """Return a lower bound of RDS's default for an instance class.

    `DBInstanceClassMemory` is the nominal memory without that of the operating system and RDS: a
    t3.small accepted 187 connections, and 2 GiB would give 225. This subtracts 20 % and 100 MiB,
    more than any measured difference. Raise `UnknownClassError` for a class not listed here.
    """
    family, _, size = name.partition(".")
    if family[0] not in "tmr" or size not in _GIB:
        raise UnknownClassError(
            problem(
                "database.instance_class",
                name,
                "be a class whose memory is known here; else set database.max_connections",
            )
        )
    nominal = _GIB[size] * (2 if family[0] == "r" else 1) * 1024
    usable = (nominal * 0.8 - 100) * 1024 * 1024
    return min(LARGEST, int(usable / CONNECTION_BYTES))


def connections_of_acus(least: float, most: float) -> int:
    """Return a lower bound of Aurora Serverless v2's default, which depends on the largest size.

    AWS lists 189 for 1 ACU, 823 for 4, 1669 for 8, 3360 for 16 and 5000 from 32 up.
    """
    limit = ACU_LIMIT_WHEN_PAUSING if least <= 0.5 else LARGEST
    return min(limit, math.floor(211 * most - 22))


def max_connections(config: Config) -> tuple[int, str]:
    """Return how many connections the stage's database accepts, and the source of the number."""
    database = config.database
    if database.max_connections is not None:
        return database.max_connections, "database.max_connections"
    if database.kind == "aurora":
        most = connections_of_acus(database.min_acu, database.max_acu)
        return most, f"RDS's default for up to {database.max_acu:g} ACU"
    most = connections_of_class(database.instance_class)
    return most, f"lower bound of RDS's default for {database.instance_class}"


def most_connections(config: Config) -> int:
    """Return the largest database.max_connections to set: twice the default, if that is known."""
    database = config.database
    if database.kind == "aurora":
        return min(LARGEST, 2 * connections_of_acus(database.min_acu, database.max_acu))
    if database.kind != "instance":
        return LARGEST
    try:
        return min(LARGEST, 2 * connections_of_class(database.instance_class))
    except UnknownClassError:
        return LARGEST
