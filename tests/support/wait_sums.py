"""The waits of layer, pooler and server, added up: how long a fault may last that fails nobody.

docs/operations.md shows the sums; tests/unit/test_waits.py compares them, and
tests/integration/test_layer_waits.py tries them.
"""

import math
from typing import Final

from lambda_pg import Settings
from lambda_pg._attempts import UNCONNECTED
from lambda_pg._retry import LAST_ATTEMPT

from lambda_pg_cdk.pgbouncer.configuration import SERVER_LOGIN_RETRY

CONNECT: Final = 0.15
"""Seconds for a secret, a login and a statement: 5 to 50 ms, and a machine that is busy."""

LAST: Final = 2 * LAST_ATTEMPT
"""Seconds before the end of a window at which its last attempt begins at the earliest: before that,
a pause is at most half of what is left, so another attempt follows."""

MAINTENANCE: Final = 1 / 3
"""Seconds between two looks of PgBouncer at its pools (full_maint_period in its janitor.c)."""

SERVER_LOGIN: Final = 0.1
"""Seconds for a login of PgBouncer at PostgreSQL: 20 to 60 ms."""

WAITS: Final = {
    "refused": (LAST, CONNECT),
    "lost": (UNCONNECTED, CONNECT),
    "no database": (SERVER_LOGIN_RETRY, MAINTENANCE, SERVER_LOGIN, LAST, CONNECT),
}
"""What may pass after the end of a fault until a request is served, by kind of fault."""


def survived(fault: str, checkout_timeout: float = Settings().checkout_timeout) -> float:
    """Return the seconds of the longest fault that fails nobody, in whole tenths."""
    return math.floor((checkout_timeout - sum(WAITS[fault])) * 10 + 1e-6) / 10


SURVIVED: Final = {fault: survived(fault) for fault in WAITS}

RETRANSMISSIONS: Final = (0.2, 0.6, 1.4, 3.0)
"""Seconds after which TCP sends a lost packet again: 0.2 (TCP_RTO_MIN of Linux), then doubled."""

IN_FLIGHT: Final = max(
    after for after in RETRANSMISSIONS if after + CONNECT < Settings().checkout_timeout
)
"""Seconds for which packets of a statement may be lost: until the last retransmission that is
still answered in the window."""
