"""Serve the Lambda Runtime API to one execution environment.

aiohttp speaks HTTP; here is what the requests mean. What they do is the environment's own affair.
"""

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from local.environments.environment import Environment

API_PREFIX = "/2018-06-01/runtime/"
MAX_PAYLOAD_BYTES = 6_291_556  # of a response: AWS's 6 MB, and its 100 bytes of envelope
MAX_HEADER_BYTES = 1_200_000  # awslambdaric sends up to 1 MiB of X-Ray fault in one header
_REPLIES = {
    202: {"status": "OK"},
    400: {"errorType": "InvalidRequestID"},
    404: {},
    413: {"errorType": "RequestEntityTooLarge"},
}


class RuntimeApi(web.Server):
    """The endpoint of one environment: a port of its own, which identifies it."""

    def __init__(self, environment: "Environment") -> None:
        # Without cancellation, whoever waits for work would wait on after its connection is gone.
        super().__init__(
            self._answer,
            handler_cancellation=True,
            access_log=None,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        self._environment = environment
        self._listener: asyncio.Server | None = None
        self._client: web.RequestHandler | None = None  # the connection that asks for work

    async def listen(self) -> str:
        """Open a free port and return its address."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self, "127.0.0.1", 0)
        port: int = self._listener.sockets[0].getsockname()[1]
        return f"127.0.0.1:{port}"

    def close(self) -> None:
        """Close the port and its connections at once."""
        if self._listener is not None:
            self._listener.close()
        for connection in self.connections:
            if connection.transport is not None:
                connection.transport.abort()

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        """Tell the environment when its runtime client is gone.

        Other connections come and go: awslambdaric reports errors of the init phase over them.
        """
        super().connection_lost(handler, exc)
        if handler is self._client:
            self._client = None
            self._environment.lose_client()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        match request.method, request.path.removeprefix(API_PREFIX).split("/"):
            case "GET", ["invocation", "next"]:
                return await self._next(request)
            case "POST", ["invocation", request_id, "response" | "error" as verb]:
                body = await _read(request)
                failed = verb == "error"
                return _reply(self._environment.take_answer(request_id, body, failed=failed))
            case "POST", ["init" | "restore", "error"]:
                self._environment.init_error = await _read(request)
                return _reply(202)
        return _reply(404)

    async def _next(self, request: web.BaseRequest) -> web.Response:
        self._client = request.protocol
        invocation = await self._environment.ask_next()
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(int(invocation.deadline * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": invocation.function_arn,
        }
        return web.Response(body=invocation.event, headers=headers, content_type="application/json")


async def _read(request: web.BaseRequest) -> bytes | None:
    """Return a body, or None where it is larger than Lambda takes.

    It is read to its end all the same: libcurl closes a connection that refuses half of a body,
    and where there is no pidfd that would be the end of the environment.
    """
    body = bytearray()
    async for chunk in request.content.iter_any():
        if len(body) <= MAX_PAYLOAD_BYTES:
            body += chunk
    return bytes(body) if len(body) <= MAX_PAYLOAD_BYTES else None


def _reply(status: int) -> web.Response:
    return web.json_response(_REPLIES[status], status=status)
