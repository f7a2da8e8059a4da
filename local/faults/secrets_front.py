"""The front of the control plane for functions and pooler: Secrets Manager fails on demand."""

import asyncio
import io
from typing import Final, Literal, get_args

import aiohttp
from aiohttp import web
from yarl import URL

from lambda_pg_cdk.local.http import guard

Kind = Literal["failing", "slow", "throttling"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)
SLOW_SECONDS: Final = 1.5
"""The delay of a slow answer: less than the checkout timeout, far more than usual."""

_ANSWERS: Final = {
    "failing": (500, "InternalServiceError", "An error occurred on the server side."),
    "throttling": (400, "ThrottlingException", "Rate exceeded"),
}
_HOP = {"content-length", "transfer-encoding", "connection", "keep-alive"}


class SecretsFront:
    """Passes requests on; the active faults apply to those to Secrets Manager.

    The control plane verifies the signature, which includes the Host header with this port.
    """

    def __init__(self, endpoint: str, session: aiohttp.ClientSession) -> None:
        """Take the address of the control plane."""
        self._endpoint = endpoint
        self._session = session
        self._faults: set[str] = set()
        self.faulted_calls = 0
        """The number of calls that failed or were late."""

    def begin(self, kind: str) -> None:
        """Begin a fault; raise ValueError for an unknown kind."""
        if kind not in KINDS:
            raise ValueError(
                f"{kind!r} is not a fault of Secrets Manager; use one of {', '.join(KINDS)}"
            )
        self._faults.add(kind)

    def end(self, kind: str) -> None:
        """End a fault, if it is active."""
        self._faults.discard(kind)

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Answer one request."""
        if reason := guard.refusal_of(request):
            refusal = {"__type": "AccessDeniedException", "message": reason}
            return web.json_response(refusal, status=403)
        if self._faults and request.headers.get("X-Amz-Target", "").startswith("secretsmanager."):
            self.faulted_calls += 1
            if "slow" in self._faults:
                await asyncio.sleep(SLOW_SECONDS)
            for kind in self._faults & _ANSWERS.keys():
                status, name, text = _ANSWERS[kind]
                return web.json_response({"__type": name, "message": text}, status=status)
        return await self._pass_on(request)

    async def _pass_on(self, request: web.BaseRequest) -> web.Response:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        async with self._session.request(
            request.method,
            URL(f"{self._endpoint}{request.raw_path}", encoded=True),
            headers=headers,
            data=await _read(request),
            allow_redirects=False,
        ) as response:
            kept = {k: v for k, v in response.headers.items() if k.lower() not in _HOP}
            kept.pop("Content-Encoding", None)  # what is read here is decoded
            return web.Response(status=response.status, headers=kept, body=await response.read())


async def _read(request: web.BaseRequest) -> io.BytesIO:
    """Read a whole body, of any size: aiohttp's `read` is limited to 1 MiB."""
    body = io.BytesIO()
    async for chunk in request.content.iter_any():
        body.write(chunk)
    body.seek(0)
    return body
