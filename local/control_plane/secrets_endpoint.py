"""Answer Secrets Manager at a second port, without the way through MiniStack's web server.

Each new environment of a storm asks for its secret at the same moment. MiniStack's own way to the
same handlers costs several times as much: its server is written in Python, and it looks for the
service in two dozen places. Values come from the same memory in the same process, so that a
rotation, a change and a deletion are seen by the next request.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import Coroutine
from email.utils import formatdate
from http import HTTPStatus
from importlib import import_module
from typing import Any, cast

from local.control_plane import hooks
from local.control_plane.handlers import Response

BACKLOG = 4096  # a storm's environments ask at once
_SERVICE = "secretsmanager."

log = logging.getLogger("secrets")


async def open_endpoint(port: int) -> None:
    """Listen on the port, as long as the process runs."""
    await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", port, backlog=BACKLOG)


class _Connection(asyncio.Protocol):
    """Answer the requests of one connection, one after the other."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while not self._transport.is_closing():
            head, found, rest = self._received.partition(b"\r\n\r\n")
            if not found:
                return
            headers = _headers(head.decode("latin-1"))
            length = headers.get("content-length", "")
            if not length.isdigit():
                self._send((HTTPStatus.LENGTH_REQUIRED, {}, b""), stays=False)
                return
            if len(rest) < int(length):
                return
            self._received = rest[int(length) :]
            stays = headers.get("connection", "").lower() != "close"
            self._send(_answer(headers, rest[: int(length)]), stays=stays)

    def _send(self, response: Response, *, stays: bool) -> None:
        self._transport.write(_message(response, stays=stays))
        if not stays:
            self._transport.close()


def _headers(head: str) -> dict[str, str]:
    lines = (line.partition(":") for line in head.split("\r\n")[1:])
    return {name.strip().lower(): value.strip() for name, _, value in lines}


def _answer(headers: dict[str, str], body: bytes) -> Response:
    """Have MiniStack's handler answer, in the account and the region of the request's signature."""
    module: Any = import_module(hooks.SECRETS)
    if not headers.get("x-amz-target", "").startswith(_SERVICE):
        refusal: Response = module.error_response_json(
            "UnknownOperationException", "This port serves Secrets Manager only.", 400
        )
        return refusal
    responses, router = import_module(hooks.RESPONSES), import_module(hooks.ROUTER)
    responses.set_request_account_id(router.extract_access_key_id(headers))
    responses.set_request_region(router.extract_region(headers))
    try:
        response = _run(module.handle_request("POST", "/", headers, body, {}))
    except Exception:
        log.exception("a request has failed: %s", headers["x-amz-target"])
        failure = {"__type": "InternalServiceError", "message": "look at ministack.log"}
        return HTTPStatus.INTERNAL_SERVER_ERROR, {}, json.dumps(failure).encode()
    return response


def _run(handling: Coroutine[Any, Any, Response]) -> Response:
    """Run a handler that waits for nothing, as those of Secrets Manager are, to its end."""
    try:
        handling.send(None)
    except StopIteration as end:
        response: Response = end.value
        return response
    handling.close()
    raise RuntimeError("MiniStack's handler of Secrets Manager waits for something")


def _message(response: Response, *, stays: bool) -> bytes:
    status, headers, body = response
    content = body.encode() if isinstance(body, str) else body
    fields = {
        "Content-Type": "application/x-amz-json-1.1",
        **headers,
        "Content-Length": str(len(content)),
        "Date": formatdate(usegmt=True),
        "x-amzn-RequestId": str(uuid.uuid4()),
        "Connection": "keep-alive" if stays else "close",
    }
    lines = [f"HTTP/1.1 {int(status)} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content
