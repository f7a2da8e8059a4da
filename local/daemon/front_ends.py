"""The HTTP servers of the daemon: how each is served, and the one of the issuer."""

import ssl
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from lambda_pg_cdk.local.daemon.layout import Listener
from lambda_pg_cdk.local.http import guard
from lambda_pg_cdk.local.http_api.issuer import Issuer

_BACKLOG = 4096  # a storm's connections come at once


class FrontEnd:
    """One HTTP server on a port that is bound already."""

    def __init__(
        self,
        listener: Listener,
        runner: web.ServerRunner | web.AppRunner,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Take the port and what answers there; nothing is served yet."""
        self._listener = listener
        self._runner = runner
        self._tls = tls

    async def start(self) -> None:
        """Begin to serve."""
        await self._runner.setup()
        sock, tls = self._listener.socket, self._tls
        await web.SockSite(self._runner, sock, ssl_context=tls, backlog=_BACKLOG).start()

    async def close(self) -> None:
        """Serve no more."""
        await self._runner.cleanup()


def issuer_server(issuer: Issuer) -> web.Server:
    """Make the server of an issuer's public documents."""
    documents: Mapping[str, Callable[[], Any]] = {
        "/.well-known/openid-configuration": issuer.discovery,
        "/.well-known/jwks.json": issuer.jwks,
    }

    async def handle(request: web.BaseRequest) -> web.Response:
        if reason := guard.refusal_of(request):
            return web.json_response({"error": reason}, status=403)
        document = documents.get(request.path)
        return web.json_response(document()) if document else web.Response(status=404)

    return web.Server(handle)
