"""The sources of the console's readings."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.servers.postgres import superuser_dsn
from lambda_pg_cdk.pgbouncer.configuration import OWN_CLIENTS

CONNECT_SECONDS = 2
APPLICATION_NAME = "lambda-pg console"
_BACKENDS = (
    "SELECT count(*) AS total, count(*) FILTER (WHERE state <> 'idle') AS active"
    " FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' AND application_name <> %s"
)
_COUNTED = ("cl_active", "cl_waiting", "sv_active")
_FREE = ("sv_idle", "sv_used", "sv_tested", "sv_login")


class Status:
    """The status of the cloud, from its daemon."""

    def __init__(self, cloud: LocalCloud) -> None:
        """Take the cloud; a restarted one in the same folder is read too."""
        self._cloud = cloud

    def read(self) -> dict[str, Any]:
        """Return `LocalCloud.status()`."""
        return self._cloud.status()

    def close(self) -> None:
        """Do nothing: there is no connection."""


class Requests:
    """The API's answers of the last minutes."""

    def __init__(self, cloud: LocalCloud) -> None:
        """Take the cloud; a restarted one in the same folder is read too."""
        self._cloud = cloud

    def read(self) -> list[dict[str, Any]]:
        """Return `LocalCloud.requests()`."""
        return self._cloud.requests()

    def close(self) -> None:
        """Do nothing: there is no connection."""


class Connected(ABC):
    """A reader with one connection, opened when needed and closed when it fails."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._connection: psycopg.Connection[dict[str, Any]] | None = None

    @abstractmethod
    def connect(self) -> psycopg.Connection[dict[str, Any]]:
        """Open the connection."""

    @abstractmethod
    def query(self, connection: psycopg.Connection[dict[str, Any]]) -> dict[str, Any]:
        """Read over the connection."""

    def read(self) -> dict[str, Any]:
        """Read over the open connection, or a new one."""
        if self._connection is None:
            self._connection = self.connect()
        try:
            return self.query(self._connection)
        except psycopg.Error:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Database(Connected):
    """PostgreSQL's client backends, without the console's own.

    It logs in as the superuser, whose connections are reserved on a full server.
    """

    def __init__(self, folder: Path, port: int) -> None:
        """Take the server's folder and port."""
        super().__init__()
        self._folder = folder
        self._port = port

    def connect(self) -> psycopg.Connection[dict[str, Any]]:
        """Log in over the socket."""
        return psycopg.connect(
            superuser_dsn(self._folder, self._port),
            autocommit=True,
            application_name=APPLICATION_NAME,
            connect_timeout=CONNECT_SECONDS,
            row_factory=dict_row,
        )

    def query(self, connection: psycopg.Connection[dict[str, Any]]) -> dict[str, Any]:
        """Return `total` and `active` backends."""
        found = connection.execute(_BACKENDS, [APPLICATION_NAME]).fetchone()
        return found or {}


class PoolerTask(Connected):
    """The connections of one PgBouncer, from its console."""

    def __init__(self, dsn: str) -> None:
        """Take the URL of the console."""
        super().__init__()
        self._dsn = dsn
        self._most_clients = 0

    def connect(self) -> psycopg.Connection[dict[str, Any]]:
        """Log in to the console, and read its limit once."""
        connection = psycopg.connect(
            self._dsn,
            autocommit=True,
            prepare_threshold=None,
            connect_timeout=CONNECT_SECONDS,
            row_factory=dict_row,
        )
        settings = connection.execute("SHOW CONFIG").fetchall()
        limit = next(int(each["value"]) for each in settings if each["key"] == "max_client_conn")
        self._most_clients = limit - OWN_CLIENTS
        return connection

    def query(self, connection: psycopg.Connection[dict[str, Any]]) -> dict[str, Any]:
        """Return the sums over its pools; `longest_wait` in seconds."""
        pools = connection.execute("SHOW POOLS").fetchall()
        pools = [each for each in pools if each["database"] != "pgbouncer"]
        counted = {name: sum(int(each[name]) for each in pools) for name in _COUNTED}
        waits = [int(each["maxwait"]) + int(each["maxwait_us"]) / 1e6 for each in pools]
        return {
            **counted,
            "sv_free": sum(int(each[name]) for each in pools for name in _FREE),
            "longest_wait": round(max(waits, default=0.0), 2),
            "max_client_conn": self._most_clients,
        }
