"""The function `sql` over HTTP on loopback, with real servers behind it.

with sql_server(direct(postgres), secrets, {"reader": login}) as server:
    key = server.create_key("reader")
    server.post({"query": "SELECT 1"}, key)
"""

import hashlib
import json
import os
import queue
import secrets
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest.mock import patch

from lambda_pg_cdk.functions.sql.sql_http.environment import open_service
from lambda_pg_cdk.functions.sql.sql_http.service import Service
from lambda_pg_cdk.local.deployment.deployed import Api, Route
from lambda_pg_cdk.local.http_api.events import HttpRequest, build_event, read_response
from lambda_pg_cdk.local.http_api.routes import find_route
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.context import Context
from tests.support.servers import DATABASE, Login, PoolerFixture, SecretsService

SECONDS = 29.0
"""How long an invocation may take, unless a test says less."""

LIMITS = {
    "SQL_DATABASE": DATABASE,
    "SQL_KEY_LIFETIME": "60",
    "SQL_MAX_ROWS": "10000",
    "SQL_MAX_BYTES": "5000000",
    "SQL_MAX_STATEMENTS": "100",
    "SQL_MAX_REQUEST_BYTES": "1000000",
    "SQL_GZIP": "1",
}
"""The settings of a stage that changes none."""


def direct(postgres: Postgres) -> dict[str, str]:
    """Lead the function to the database itself."""
    return {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(postgres.port),
        "PGDATABASE": DATABASE,
        "PGSSLROOTCERT": str(postgres.ca_file),
    }


def through(pooler: PoolerFixture) -> dict[str, str]:
    """Lead the function to PgBouncer, whose USER_SECRET_ARNS must have the roles' secrets."""
    return {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(pooler.port),
        "PGDATABASE": DATABASE,
        "LAMBDA_PG_PROFILE": "pgbouncer",
        "LAMBDA_PG_CA_PEM": pooler.authority.pem,
    }


@dataclass(frozen=True)
class Key:
    """A key, as a client knows it."""

    id: str
    secret: str
    host: str = "127.0.0.1"
    database: str = DATABASE

    @property
    def connection_string(self) -> str:
        """What a client has as its DATABASE_URL."""
        return f"postgresql://{self.id}:{self.secret}@{self.host}/{self.database}"


@dataclass(frozen=True)
class Answer:
    """An answer: JSON, where its body is JSON."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        """The body's JSON."""
        return json.loads(self.content)


class SqlServer:
    """The function's environments behind one port; each serves one request at a time."""

    def __init__(self, environ: Mapping[str, str], service: SecretsService) -> None:
        """Take the environment of a function without the table of keys, which is made here."""
        self._secrets = service
        self._keys: dict[str, Any] = {}
        self._keys_arn = service.create({})
        self.environ = {**environ, "SQL_KEYS_SECRET_ARN": self._keys_arn}
        self.seconds = SECONDS
        self._free: queue.SimpleQueue[Service] = queue.SimpleQueue()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.port: int = self._http.server_address[1]

    @property
    def url(self) -> str:
        """What a client takes for `neonConfig.fetchEndpoint`."""
        return f"http://127.0.0.1:{self.port}/sql"

    def start(self, environments: int) -> None:
        """Make the environments, and listen."""
        self._put_keys()
        for _ in range(environments):
            self._free.put(open_service(self.environ))
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._http.server_close()

    def create_key(self, role: str, **fields: Any) -> Key:
        """Add a key; `fields` are those of the table of keys."""
        key = Key(f"key-{secrets.token_hex(4)}", secrets.token_urlsafe(32))
        digest = hashlib.sha256(key.secret.encode()).hexdigest()
        created = "2026-12-01T12:00:00+00:00"
        self._keys[key.id] = {"hash": digest, "role": role, "created": created, **fields}
        self._put_keys()
        return key

    def revoke(self, key: Key) -> None:
        """Take a key out of the table."""
        del self._keys[key.id]
        self._put_keys()

    def _put_keys(self) -> None:
        self._secrets.client.put_secret_value(
            SecretId=self._keys_arn, SecretString=json.dumps({"keys": self._keys})
        )

    def post(
        self, body: Any, key: Key | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request: JSON, or bytes as they are."""
        named = {} if key is None else {"Neon-Connection-String": key.connection_string}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("POST", content, {**named, **(headers or {})})

    def send(self, method: str, content: bytes, headers: Mapping[str, str]) -> Answer:
        """Send a request as it is."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, "/sql", content, dict(headers))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def asking(self, key: Key, query: str) -> Callable[[], None]:
        """Return what sends a query with a key, and raises for any status but 200."""

        def ask() -> None:
            answer = self.post({"query": query}, key)
            assert answer.status == 200, answer.content

        return ask

    def invoke(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Call the handler of a free environment."""
        service = self._free.get()
        try:
            return service.answer(event, Context(self.seconds))
        finally:
            self._free.put(service)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                self._answer()

            def do_OPTIONS(self) -> None:
                self._answer()

            def _answer(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                event = event_of(self.command, self.path, list(self.headers.items()), content)
                response = read_response(json.dumps(server.invoke(event)).encode())
                self.send_response(response.status)
                for name, value in response.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(response.body)))
                self.end_headers()
                self.wfile.write(response.body)

            def log_message(self, *_: Any) -> None:
                """Print no line for each request."""

        return Handler


def event_of(
    method: str, path: str, headers: list[tuple[str, str]], content: bytes
) -> dict[str, Any]:
    """Build the event that API Gateway would."""
    routes = tuple(Route(f"{each} /sql", "sql", "2.0", SECONDS) for each in ("POST", "OPTIONS"))
    match = find_route(routes, method, path.partition("?")[0])
    assert match is not None, f"no route for {method} {path}"
    request = HttpRequest(
        id=str(uuid.uuid4()),
        method=method,
        path=path.partition("?")[0],
        query=path.partition("?")[2],
        headers=headers,
        body=content,
        source="127.0.0.1",
    )
    return build_event(request, Api("sql", "$default", routes), match, None)


@contextmanager
def sql_server(
    endpoint: Mapping[str, str],
    service: SecretsService,
    roles: Mapping[str, Login],
    *,
    environments: int = 1,
    **changes: str,
) -> Iterator[SqlServer]:
    """Serve `POST /sql` for roles with their logins; `changes` are variables of the function."""
    arns = json.dumps({role: login.arn for role, login in roles.items()})
    environ = {**LIMITS, **endpoint, "SQL_ROLES": arns, **service.environment, **changes}
    with patch.dict(os.environ, service.environment):
        server = SqlServer(environ, service)
        server.start(environments)
        try:
            yield server
        finally:
            server.stop()
