"""Serve the Lambda Runtime API to one execution environment.

It parses the requests; the environment acts on them.
"""

import asyncio
import json
import secrets
from collections.abc import Callable
from typing import Protocol, cast

from lambda_pg_cdk.local.environments.invocation import Invocation
from lambda_pg_cdk.local.http import guard
from lambda_pg_cdk.local.http.requests import (
    LENGTH_REQUIRED,
    Request,
    RequestReader,
    UnreadableError,
    response,
)

API_PREFIX = "/2018-06-01/runtime/"
MAX_PAYLOAD_BYTES = 6_291_556  # of a response: AWS's 6 MB and 100 bytes of envelope
_JSON = {"Content-Type": "application/json"}
_REPLIES = {
    202: {"status": "OK"},
    400: {"errorType": "InvalidRequestID"},
    404: {},
    413: {"errorType": "RequestEntityTooLarge"},
}


class Worker(Protocol):
    """What the endpoint needs of its environment."""

    init_error: bytes | None

    def ask_next(self, deliver: Callable[[Invocation], None]) -> None:
        """Deliver the next event, now or later."""

    def take_answer(self, request_id: str, body: bytes | None, *, failed: bool) -> int:
        """Take the answer to an event; return the status of the response."""

    def lose_client(self) -> None:
        """Note that the runtime client has disconnected."""


class RuntimeApi:
    """The endpoint of one environment, with a separate port.

    Its address ends with a random path, which only the environment knows: other accounts of the
    machine can neither take its events nor answer them.
    """

    def __init__(self, environment: Worker) -> None:
        self.environment = environment
        self.port = 0
        self._path = f"/{secrets.token_hex(16)}"
        self.prefix = f"{self._path}{API_PREFIX}"
        self.connections: set[_Connection] = set()
        self.client: _Connection | None = None
        """The connection that asks for work."""
        self._listener: asyncio.Server | None = None

    async def listen(self) -> str:
        """Open a free port and return its address."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return f"127.0.0.1:{self.port}{self._path}"

    def close(self) -> None:
        """Close the port and its connections at once."""
        if self._listener is not None:
            self._listener.close()
        for connection in self.connections:
            connection.abort()


class _Connection(asyncio.Protocol):
    """One connection of the runtime client, or of the reporter of init errors.

    Each request is answered before the next one is read.
    """

    _transport: asyncio.Transport

    def __init__(self, api: RuntimeApi) -> None:
        self._api = api
        self._reader = RequestReader(MAX_PAYLOAD_BYTES)
        self._answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._api.connections.add(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Tell the environment if this was its runtime client; others may close at any time."""
        self._api.connections.discard(self)
        if self is self._api.client:
            self._api.client = None
            self._api.environment.lose_client()

    def abort(self) -> None:
        """Close it without waiting."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while not self._answering and (request := self._reader.next()) is not None:
                self._answering = True
                self._take(request)
        except UnreadableError:
            self._transport.write(LENGTH_REQUIRED)
            self._transport.close()

    def _take(self, request: Request) -> None:
        environment = self._api.environment
        if reason := self._refusal(request):
            self._respond(403, _JSON, json.dumps({"errorMessage": reason}).encode())
            return
        body = None if request.body is None else bytes(request.body)
        match request.method, request.path.removeprefix(self._api.prefix).split("/"):
            case "GET", ["invocation", "next"]:
                self._api.client = self
                environment.ask_next(self._deliver)
            case "POST", ["invocation", request_id, "response" | "error" as verb]:
                self._reply(environment.take_answer(request_id, body, failed=verb == "error"))
            case "POST", ["init" | "restore", "error"]:
                environment.init_error = body
                self._reply(202)
            case _:
                self._reply(404)

    def _refusal(self, request: Request) -> str | None:
        if reason := guard.refusal(request.headers, [self._api.port]):
            return reason
        if request.path.startswith(self._api.prefix):
            return None
        return "the path is not that of AWS_LAMBDA_RUNTIME_API: only its environment may ask this"

    def _deliver(self, invocation: Invocation) -> None:
        headers = {
            **_JSON,
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(int(invocation.deadline * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": invocation.function_arn,
        }
        self._respond(200, headers, invocation.event)
        self.data_received(b"")  # the bytes that arrived while this one waited

    def _reply(self, status: int) -> None:
        self._respond(status, _JSON, json.dumps(_REPLIES[status]).encode())

    def _respond(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._answering = False
        self._transport.write(response(status, headers, body))
