"""Tell the daemon when something may have changed, so that it need not poll every second."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import parse_qs

PATH: Final = "/_lambda_pg/changes"
"""A path of the control plane. The answer is `{"count": n}`, once n differs from `known`."""

HELD_SECONDS: Final = 60.0
"""Longest time until the answer."""

OWN_REQUESTS: Final = "lambda-pg-inventory"
"""In the user agent of the daemon's requests, which only read."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_READING = ("Get", "List", "Describe", "Discover")


class Changes:
    """Count the requests that MiniStack has answered and that may have changed something."""

    def __init__(self, application: Application, begin: Callable[[], Awaitable[None]]) -> None:
        """Wrap MiniStack's application; `begin` runs before anything is served."""
        self._application = application
        self._begin = begin
        self._count = 0
        self._changed = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the daemon's question; let MiniStack answer everything else."""
        if scope["type"] == "http" and scope["path"] == PATH:
            await self._tell(scope, send)
            return
        if scope["type"] == "lifespan":
            await self._begin()
        try:
            await self._application(scope, receive, send)
        finally:
            if scope["type"] == "http" and not _only_reads(scope):
                self._count += 1
                self._changed.set()

    async def _tell(self, scope: Scope, send: Send) -> None:
        """Answer with the count as soon as it differs from the one that the caller knows."""
        known = parse_qs(scope["query_string"].decode()).get("known", [""])[0]
        if known == str(self._count):
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(HELD_SECONDS):
                    await self._changed.wait()
        body = json.dumps({"count": self._count}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _only_reads(scope: Scope) -> bool:
    """Tell whether a request certainly changes nothing; a form request may change something."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    if scope["method"] in {"GET", "HEAD", "OPTIONS"}:
        return True
    if OWN_REQUESTS.encode() in headers.get(b"user-agent", b""):
        return True
    operation = str(headers.get(b"x-amz-target", b""), "latin-1").rpartition(".")[2]
    return operation.startswith(_READING)
