"""The ports of the deployed APIs."""

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from lambda_pg_cdk.local.daemon.front_ends import FrontEnd
from lambda_pg_cdk.local.daemon.layout import Listener
from lambda_pg_cdk.local.deployment.deployed import Api, CustomDomain
from lambda_pg_cdk.local.http_api.custom_domains import CustomDomains
from lambda_pg_cdk.local.http_api.server import HttpApi, server


@dataclass(frozen=True, slots=True)
class _Port:
    """A port that is served, and what answers there."""

    listener: Listener
    front_end: FrontEnd

    async def close(self) -> None:
        await self.front_end.close()
        self.listener.close()


class ApiPorts:
    """Serves all deployed APIs, as API Gateway does at a host name for each.

    The oldest API is at the address of the cloud, which never changes. Each other API has a port
    while it is deployed. All custom domain names share one port with TLS, while there is a name.
    """

    def __init__(self, first: Listener, make: Callable[[], HttpApi], folder: Path) -> None:
        """Take the port of the cloud, what makes an API's front end, and a folder for TLS."""
        self._first = FrontEnd(first, web.ServerRunner(server(self._handle_first)))
        self._first_url = first.url
        self._make = make
        self._apis: tuple[Api, ...] = ()
        self._fronts: dict[str, HttpApi] = {}
        self._ports: dict[str, _Port] = {}
        self._domains: tuple[CustomDomain, ...] = ()
        self._names = CustomDomains(folder)
        self._tls: _Port | None = None
        self._empty = make()

    async def start(self) -> None:
        """Serve the port of the cloud; nothing is deployed yet."""
        await self._first.start()

    async def close(self) -> None:
        """Serve no more."""
        await self.follow((), ())
        await self._first.close()

    async def follow(self, apis: Sequence[Api], domains: Sequence[CustomDomain]) -> None:
        """Serve these APIs, the oldest first, and these names."""
        self._apis, self._domains = tuple(apis), tuple(domains)
        for api in apis:
            self._fronts.setdefault(api.id, self._make()).update(api)
        for gone in self._fronts.keys() - {api.id for api in apis}:
            self._fronts.pop(gone).update(None)
        await self._open_ports([api.id for api in apis[1:]])
        self._names.update({each.name: self._fronts[each.api] for each in domains})
        await self._follow_names()

    async def _open_ports(self, wanted: Sequence[str]) -> None:
        for gone in self._ports.keys() - set(wanted):
            await self._ports.pop(gone).close()
        for new in wanted:
            if new not in self._ports:
                self._ports[new] = await _open(server(self._fronts[new].handle))

    async def _follow_names(self) -> None:
        if self._domains and self._tls is None:
            self._tls = await _open(server(self._names.handle), self._names.context)
        if not self._domains and self._tls is not None:
            await self._tls.close()
            self._tls = None

    async def _handle_first(self, received: web.BaseRequest) -> web.Response:
        front = self._fronts[self._apis[0].id] if self._apis else self._empty
        return await front.handle(received)

    def status(self) -> dict[str, list[dict[str, Any]]]:
        """Return what `status --json` prints: the APIs, the oldest first, and the names."""
        apis = [
            {
                "id": api.id,
                "name": api.name,
                "url": self._ports[api.id].listener.url
                if api.id in self._ports
                else self._first_url,
                "routes": sorted(route.key for route in api.routes),
                "scopes": sorted({scope for route in api.routes for scope in route.scopes}),
            }
            for api in self._apis
        ]
        return {"apis": apis, "domains": [self._domain(each) for each in self._domains]}

    def _domain(self, domain: CustomDomain) -> dict[str, Any]:
        port = self._tls.listener.port if self._tls else None
        found = {"name": domain.name, "api": domain.api, "port": port}
        return {**found, "ca_file": str(self._names.ca_file)}


async def _open(handler: web.Server, tls: ssl.SSLContext | None = None) -> _Port:
    listener = Listener()
    port = _Port(listener, FrontEnd(listener, web.ServerRunner(handler), tls))
    await port.front_end.start()
    return port
