"""Serve custom domain names: TLS with a certificate for each name, and the API behind it."""

import ssl
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from lambda_pg_cdk.local.http import guard
from lambda_pg_cdk.local.http_api.server import HttpApi, refused
from lambda_pg_cdk.local.servers.certificates import Authority, Certificate


class CustomDomains:
    """The deployed names. A client that sends no name (SNI), or another one, gets no connection."""

    def __init__(self, folder: Path) -> None:
        """Take the folder for the files of certificates; no name is deployed yet."""
        self._folder = folder
        self._authority: Authority | None = None
        self._apis: Mapping[str, HttpApi] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        """The context of the port: the name that a client sends chooses another one."""
        self.context.sni_callback = self._choose

    @property
    def ca_file(self) -> Path:
        """The certificate that clients have to trust, once there is a name."""
        return self._folder / "ca.pem"

    def update(self, apis: Mapping[str, HttpApi]) -> None:
        """Serve these names, each by its API."""
        for name in apis.keys() - self._contexts.keys():
            self._contexts[name] = self._issue(name)
        self._apis = apis

    async def handle(self, received: web.BaseRequest) -> web.Response:
        """Answer one request; this is aiohttp's handler."""
        name = received.headers.get("Host", "").partition(":")[0]
        port = received.transport.get_extra_info("sockname")[1] if received.transport else 0
        api = self._apis.get(name)
        if api is None:
            return refused(f"Host is {name!r}; must be one of {', '.join(sorted(self._apis))}.")
        own = [f"https://{name}", f"https://{name}:{port}"]
        if reason := guard.refusal_at(own, received.headers, api.trusts(received)):
            return refused(reason)
        return await api.answer(received)

    def _choose(
        self, connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext
    ) -> int | None:
        if name is None or name not in self._apis:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        connection.context = self._contexts[name]
        return None

    def _issue(self, name: str) -> ssl.SSLContext:
        if self._authority is None:
            self._authority = Authority.create("lambda-pg local custom domains")
            self.ca_file.write_text(self._authority.pem)
        file = self._folder / "certificate.pem"  # only `load_cert_chain` reads it
        return _context(file, self._authority.issue([name]))


def _context(file: Path, certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    file.touch(mode=0o600)
    file.write_text(certificate.private_key + certificate.chain)
    context.load_cert_chain(file)
    file.unlink()
    return context
