"""The module that Django loads for `"ENGINE": "lambda_pg.django"`."""

from functools import cached_property
from typing import Any, Final

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.postgresql import base, client, creation, operations
from django.db.backends.postgresql.psycopg_any import IsolationLevel, get_adapters_template
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from lambda_pg._database import Database
from lambda_pg._settings import Settings
from lambda_pg._shared import close_idle, pooled

UTC_NAMES: Final = frozenset({"UTC", "Etc/UTC", "Etc/UCT", "UCT", "Etc/Zulu", "Zulu", "GMT"})
"""Names of one zone: to a server that has one, Django need not send another."""

NOT_HERE: Final = ("HOST", "PORT", "USER", "PASSWORD", "CONN_MAX_AGE")


FOR_PSQL: Final = (
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "options",
    "sslmode",
    "sslrootcert",
    "channel_binding",
)
"""What psql needs to connect as the layer does, beside the password."""

SPATIAL: Final = frozenset(
    {
        "Adapter",
        "geo_db_type",
        "geometry_columns",
        "get_distance",
        "get_geom_placeholder",
        "get_geometry_converter",
        "gis_operators",
        "select",
        "select_extent",
        "spatial_aggregate_name",
        "spatial_function_name",
        "spatial_ref_sys",
        "spatial_version",
    }
)
"""Names that only GeoDjango looks up in a backend's operations."""


class Cursor(base.Cursor):
    """Django's cursor, whose statements strict mode inspects before they are sent."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        """Execute one statement. Raises StatementRefusedError in strict mode."""
        self.connection.inspect(query)
        return super().execute(query, params, **options)


class DatabaseClient(client.DatabaseClient):
    """The client that `manage.py dbshell` starts."""

    def settings_to_cmd_args_env(
        self, _: dict[str, Any], parameters: list[str]
    ) -> tuple[list[str], dict[str, str]]:
        """Have psql connect as the layer does now; the password is not in an argument."""
        with self.connection.layer.connection() as connection:
            known, password = connection.info.get_parameters(), connection.info.password
        conninfo = make_conninfo(**{name: known[name] for name in FOR_PSQL if name in known})
        return [self.executable_name, *parameters, conninfo], {"PGPASSWORD": password}


class DatabaseCreation(creation.DatabaseCreation):
    """The database of `manage.py test`."""

    def _get_test_db_name(self) -> str:
        """Name it after the environment's database if the settings name none."""
        name: str = super()._get_test_db_name()
        if self.connection.settings_dict["TEST"]["NAME"] or self.connection.settings_dict["NAME"]:
            return name
        return f"{name}{self.connection.environment_s_name()}"


class DatabaseOperations(operations.DatabaseOperations):
    """Django's SQL for PostgreSQL, without GeoDjango's."""

    def __getattr__(self, name: str) -> Any:
        """Refuse GeoDjango with an explanation."""
        if name in SPATIAL:
            raise ImproperlyConfigured(
                f"DATABASES[{self.connection.alias!r}] has the engine lambda_pg.django, which "
                "does not support geometry: give models of GeoDjango a database with the engine "
                "django.contrib.gis.db.backends.postgis, which connects without the layer"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's PostgreSQL connection: opened by the layer's pool, and returned on close."""

    client_class = DatabaseClient
    creation_class = DatabaseCreation
    ops_class = DatabaseOperations
    connection: Any
    isolation_level: Any

    def get_connection_params(self) -> dict[str, Any]:
        """Check settings.DATABASES; the endpoint comes from the environment."""
        options = self.settings_dict["OPTIONS"].keys() - {"direct"}
        wrong = [name for name in NOT_HERE if self.settings_dict.get(name)]
        wrong += [f"OPTIONS[{name!r}]" for name in sorted(options)]
        if wrong:
            raise ImproperlyConfigured(
                f"DATABASES[{self.alias!r}] sets {', '.join(wrong)}: lambda_pg.django takes "
                "endpoint and login from the environment (LAMBDA_PG_SECRET_ARN, DATABASE_URL), "
                "keeps connections itself, and knows only OPTIONS['direct']"
            )
        return {}

    def get_new_connection(self, _: dict[str, Any]) -> Any:
        """Take a connection out of the layer's pool, as Django expects a new one to be."""
        self.isolation_level = IsolationLevel.READ_COMMITTED
        self._lender = self.layer
        connection: Any = self._lender.getconn()
        template = get_adapters_template(django_settings.USE_TZ, self.timezone)
        connection._adapters = AdaptersMap(template)
        connection.cursor_factory = Cursor
        return connection

    def connect(self) -> None:
        """Connect; close a connection that could not be made ready."""
        try:
            super().connect()
        except BaseException:
            self.close()
            raise

    def ensure_connection(self) -> None:
        """Connect again if the end of an invocation has closed the connection that Django held.

        Not while lost work needs an error: in an atomic block, or once if the application commits.
        """
        kept = self.connection
        gone = kept is not None and kept.closed and not self.in_atomic_block
        if gone and (self.autocommit or kept.lease.reported or not kept.lease.reclaimed):
            self.close()
        super().ensure_connection()

    def chunked_cursor(self) -> Any:
        """Use a server-side cursor only where the server connection belongs to this client."""
        self.ensure_connection()
        return super().chunked_cursor() if self.connection.profile.session else self.cursor()

    def close_pool(self) -> None:
        """Close the idle connections of every alias: Django is about to drop or copy a database."""
        close_idle()

    def environment_s_name(self) -> str:
        """Return the database's name from the environment, or from its secret."""
        known = self._settings.dbname
        if known is None:
            credentials = pooled(self._settings)._credentials
            known = credentials.get(self._settings.checkout_timeout).dbname
        return known or "postgres"

    @property
    def layer(self) -> Database[TupleRow]:
        """The Database of this alias."""
        name = self.settings_dict["NAME"]
        return pooled(self._settings, "postgres" if name is None else name or None)

    @cached_property
    def _settings(self) -> Settings:
        return Settings.from_env(direct=bool(self.settings_dict["OPTIONS"].get("direct")))

    def _close(self) -> None:
        connection, self.connection = self.connection, None
        with self.wrap_database_errors:
            self._lender.putconn(connection)

    def _configure_timezone(self, connection: Any) -> bool:
        """Make the server's TimeZone Django's; return whether a statement was sent.

        Django reads timestamps as if it were. Where the server connection does not belong to this
        client, setting it would reach other clients, or pin.
        """
        server, mine = connection.info.parameter_status("TimeZone"), self.timezone_name
        if mine in {None, server} or {mine, server} <= UTC_NAMES:
            return False
        if connection.profile.session:
            return bool(super()._configure_timezone(connection))
        raise ImproperlyConfigured(
            f"the server's TimeZone is {server!r} and Django's {mine!r}; through a pooler it "
            f"cannot be set on the connection: ALTER DATABASE … SET timezone TO '{mine}', "
            "or let TIME_ZONE of this database name the server's"
        )
