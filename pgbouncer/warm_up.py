"""Has PgBouncer log in at the database before clients come.

PgBouncer opens one server connection after the other, and each step of a login takes a round of its
loop. At the start all of them take tenths of a second. Among the logins of many clients they take
many seconds, and statements that wait for them are rejected. The health check succeeds only after
this; it does not depend on whether the database is up.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from .configuration import User
from .session import SessionError
from .settings import Settings
from .transaction import Transaction

# How many server connections each current user has before clients come, and how long that may take.
WARM_CONNECTIONS = 10
WARM_SECONDS = 2.0

log = logging.getLogger("supervisor")


def warm_up(settings: Settings, everyone: Sequence[User]) -> None:
    """Open server connections of the current users, which come first, and leave them open."""
    users = everyone[: len(settings.user_secret_arns)]
    share = min(settings.max_db_connections, settings.max_client_conn // 2) // len(users)
    count = min(settings.default_pool_size, max(share, 1), WARM_CONNECTIONS)
    names = [user.name for user in users for _ in range(count)]
    # All at once: one after the other, they would share one server connection.
    with ThreadPoolExecutor(len(names)) as logins:
        found = logins.map(lambda name: _begin(settings, name), names)
        opened = [transaction for transaction in found if transaction is not None]
    for transaction in opened:
        transaction.close()
    log.info("%d of %d server connections are open", len(opened), len(names))


def _begin(settings: Settings, user: str) -> Transaction | None:
    try:
        return Transaction(settings.socket, user, settings.database_name, WARM_SECONDS)
    except SessionError:
        return None
