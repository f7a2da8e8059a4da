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

    It uses sockets without asyncio's transports: most connections send one request, which arrives
    with the connection.
    """
    listener = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
    listener.setblocking(False)
    serving: set[asyncio.Task[None]] = set()

    def accept() -> None:
        with suppress(OSError):  # no client waits, or it has gone already
            while True:
                client, _ = listener.accept()
                task = asyncio.create_task(_serve(client, port, key))
                serving.add(task)
                task.add_done_callback(serving.discard)

    asyncio.get_running_loop().add_reader(listener, accept)


async def _serve(client: socket.socket, port: int, key: str) -> None:
    """Answer the requests of one connection, one after the other."""
    loop, reader = asyncio.get_running_loop(), RequestReader(MAX_BODY_BYTES)
    with client, suppress(OSError):
        client.setblocking(False)
        while data := await loop.sock_recv(client, 65536):
            try:
                reader.feed(data)
                while (request := reader.next()) is not None:
                    await loop.sock_sendall(client, _respond(request, port, key))
                    if request.is_last:
                        return
            except UnreadableError:
                await loop.sock_sendall(client, LENGTH_REQUIRED)
                return


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
    module: Any = import_module(hooks.SECRETS)
    headers = request.headers
    if not headers.get("x-amz-target", "").startswith(_SERVICE):
        return _refusal("UnknownOperationException", "This port serves Secrets Manager only.")
    if request.body is None:
        return _refusal("InvalidParameterException", f"More than {MAX_BODY_BYTES} bytes.")
    responses, router = import_module(hooks.RESPONSES), import_module(hooks.ROUTER)
    responses.set_request_account_id(router.extract_access_key_id(headers))
    responses.set_request_region(router.extract_region(headers))
    try:
        response = _run(module.handle_request("POST", "/", headers, bytes(request.body), {}))
    except Exception:
        log.exception("a request has failed: %s", headers["x-amz-target"])
        failure = {"__type": "InternalServiceError", "message": "read ministack.log"}
        return HTTPStatus.INTERNAL_SERVER_ERROR, {}, json.dumps(failure).encode()
    return response


def _refusal(error: str, message: str) -> Response:
    module: Any = import_module(hooks.SECRETS)
    refusal: Response = module.error_response_json(error, message, HTTPStatus.BAD_REQUEST)
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
