"""Answer Secrets Manager at a second port, without MiniStack's web server.

All new environments of a storm read their secret at the same moment. Through MiniStack's server
each request costs several times as much: the server is written in Python, and it looks for the
service in two dozen places. The values are in the same memory of the same process: the next request
sees a rotation, a change or a deletion.
"""

import asyncio
import json
import logging
import socket
import uuid
from collections.abc import Coroutine
from contextlib import suppress
from email.utils import formatdate
from functools import cache, lru_cache
from http import HTTPStatus
from importlib import import_module
from typing import Any

from lambda_pg_cdk.local.control_plane import hooks, signatures
from lambda_pg_cdk.local.control_plane.gate import refusal_body, unsigned
from lambda_pg_cdk.local.control_plane.handlers import Response
from lambda_pg_cdk.local.http import guard
from lambda_pg_cdk.local.http.requests import (
    LENGTH_REQUIRED,
    Request,
    RequestReader,
    UnreadableError,
    response,
)

BACKLOG = 4096  # the environments of a storm connect at once
MAX_BODY_BYTES = 1024 * 1024  # a secret has 64 KiB
_SERVICE = "secretsmanager."

log = logging.getLogger("secrets")


async def open_endpoint(port: int, key: str) -> None:
    """Serve requests signed with the key on the port, as long as the process runs.

    It uses sockets without asyncio's transports: most connections send one request, and the kernel
    reports them when it has arrived.
    """
    listener = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
    listener.setblocking(False)
    if hasattr(socket, "TCP_DEFER_ACCEPT"):  # Linux
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
    serving: set[asyncio.Task[None]] = set()

    def accept() -> None:
        with suppress(OSError):  # no client waits, or it has gone already
            while True:
                connection = _Connection(listener.accept()[0], port, key)
                if not connection.serve_at_once():
                    task = asyncio.create_task(connection.serve())
                    serving.add(task)
                    task.add_done_callback(serving.discard)

    asyncio.get_running_loop().add_reader(listener, accept)


class _Connection:
    """One client, whose requests are answered one after the other."""

    def __init__(self, client: socket.socket, port: int, key: str) -> None:
        """Take the connection, the port that the client may name, and the key of this cloud."""
        client.setblocking(False)
        self._client = client
        self._port = port
        self._key = key
        self._reader = RequestReader(MAX_BODY_BYTES)
        self._unsent = b""
        self._over = False  # no further request is read

    def serve_at_once(self) -> bool:
        """Answer what has arrived, without waiting; tell whether the connection is closed."""
        try:
            self._unsent = self._answers(self._client.recv(65536))
            self._unsent = self._unsent[self._client.send(self._unsent) :]
        except BlockingIOError:
            return False
        except OSError:  # the client has gone
            self._over, self._unsent = True, b""
        if self._over and not self._unsent:
            self._client.close()
            return True
        return False

    async def serve(self) -> None:
        """Send the rest of an answer, and serve the client until its last request."""
        loop = asyncio.get_running_loop()
        with self._client, suppress(OSError):
            await loop.sock_sendall(self._client, self._unsent)
            while not self._over:
                answers = self._answers(await loop.sock_recv(self._client, 65536))
                await loop.sock_sendall(self._client, answers)

    def _answers(self, data: bytes) -> bytes:
        """Return the answers to the requests that these bytes complete; no bytes are the end."""
        answers = b""
        try:
            self._reader.feed(data)
            while not self._over and (request := self._reader.next()) is not None:
                answers += _respond(request, self._port, self._key)
                self._over = request.is_last
        except UnreadableError:
            return answers + self._end(LENGTH_REQUIRED)
        return answers if data else answers + self._end(b"")

    def _end(self, answer: bytes) -> bytes:
        self._over = True
        return answer


def _respond(request: Request, port: int, key: str) -> bytes:
    status, headers, body = _refuse_strangers(request, port, key) or _answer(request)
    fields = {
        "Content-Type": "application/x-amz-json-1.1",
        **headers,
        "Date": formatdate(usegmt=True),
        "x-amzn-RequestId": str(uuid.uuid4()),
        "Connection": "close" if request.is_last else "keep-alive",
    }
    return response(status, fields, body.encode() if isinstance(body, str) else body)


def _refuse_strangers(request: Request, port: int, key: str) -> Response | None:
    reason = guard.refusal(request.headers, [port])
    if reason is None:
        path, _, query = request.path.partition("?")
        body = bytes(request.body or b"")
        asked = signatures.Request(request.method, path, query, request.headers, body)
        wrong = signatures.refusal(asked, key)
        reason = wrong and unsigned(wrong)
    return None if reason is None else (HTTPStatus.FORBIDDEN, {}, refusal_body(reason))


def _answer(request: Request) -> Response:
    """Call MiniStack's handler, in the account and the region of the request's signature."""
    module, headers = _secrets(), request.headers
    if not headers.get("x-amz-target", "").startswith(_SERVICE):
        return _refusal("UnknownOperationException", "This port serves Secrets Manager only.")
    if request.body is None:
        return _refusal("InvalidParameterException", f"More than {MAX_BODY_BYTES} bytes.")
    access_key, region = _signer(headers.get("authorization", ""))
    _responses().set_request_account_id(access_key)
    _responses().set_request_region(region)
    try:
        response = _run(module.handle_request("POST", "/", headers, bytes(request.body), {}))
    except Exception:
        log.exception("a request has failed: %s", headers["x-amz-target"])
        failure = {"__type": "InternalServiceError", "message": "read ministack.log"}
        return HTTPStatus.INTERNAL_SERVER_ERROR, {}, json.dumps(failure).encode()
    return response


@lru_cache(maxsize=64)
def _signer(authorization: str) -> tuple[str, str]:
    """Return the id of the key and the region of a signature."""
    router, headers = import_module(hooks.ROUTER), {"authorization": authorization}
    return router.extract_access_key_id(headers), router.extract_region(headers)


@cache
def _secrets() -> Any:
    return import_module(hooks.SECRETS)


@cache
def _responses() -> Any:
    return import_module(hooks.RESPONSES)


def _refusal(error: str, message: str) -> Response:
    refusal: Response = _secrets().error_response_json(error, message, HTTPStatus.BAD_REQUEST)
    return refusal


def _run(handling: Coroutine[Any, Any, Response]) -> Response:
    """Run a handler that never waits, like those of Secrets Manager."""
    try:
        handling.send(None)
    except StopIteration as end:
        response: Response = end.value
        return response
    handling.close()
    raise RuntimeError("MiniStack's handler of Secrets Manager has to wait, which is not expected")
