"""Answer Secrets Manager at a port of its own, without the way through MiniStack's web server.

Each new environment of a storm asks for its secret at the same moment. MiniStack's own way to the
same handlers costs several times as much: its server is written in Python, and it looks for the
service in two dozen places. Values come from the same memory in the same process, so that a
rotation, a change and a deletion are seen by the next request.
"""

import asyncio
import json
import logging
import uuid
from email.utils import formatdate
from http import HTTPStatus
from importlib import import_module
from typing import Any

from local.control_plane import hooks
from local.control_plane.handlers import Response

BACKLOG = 4096  # a storm's environments ask at once
_SERVICE = "secretsmanager."

log = logging.getLogger("secrets")


async def open_endpoint(port: int) -> None:
    """Listen on the port, as long as the process runs."""
    await asyncio.start_server(_converse, "127.0.0.1", port, backlog=BACKLOG)


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection, one after the other."""
    try:
        while await _exchange(reader, writer):
            pass
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        pass  # the caller has gone, or does not speak HTTP
    finally:
        writer.close()


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer one request; tell whether another may follow on the connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lines = (line.partition(":") for line in head.split("\r\n")[1:] if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in lines}
    length = headers.get("content-length", "")
    if not length.isdigit():
        writer.write(_message((HTTPStatus.LENGTH_REQUIRED, {}, b""), stays=False))
        return False
    body = await reader.readexactly(int(length))
    stays = headers.get("connection", "").lower() != "close"
    writer.write(_message(await _answer(headers, body), stays=stays))
    await writer.drain()
    return stays


async def _answer(headers: dict[str, str], body: bytes) -> Response:
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
        response: Response = await module.handle_request("POST", "/", headers, body, {})
    except Exception:
        log.exception("a request has failed: %s", headers["x-amz-target"])
        failure = {"__type": "InternalServiceError", "message": "look at ministack.log"}
        return HTTPStatus.INTERNAL_SERVER_ERROR, {}, json.dumps(failure).encode()
    return response


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
