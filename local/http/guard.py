"""Refuse what a web page sends to a port of the local cloud. No I/O.

A browser lets any page send requests to loopback, and a page may reach it by a name of its own (DNS
rebinding). It says so in headers that the page cannot change.
"""

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the control plane's virtual environment has no aiohttp
    from aiohttp.web import BaseRequest

_OWN_SITES = {None, "none", "same-origin"}  # "none": typed into the address bar


def refusal(
    headers: Mapping[str, str],
    ports: Collection[int],
    trusts: Callable[[str], bool] = lambda _origin: False,
) -> str | None:
    """Say why a request has to be refused; None for one of a program, or of the port's own page.

    The names of `headers` are in lower case, or their case does not matter. `ports` are those that
    the caller can have asked; `trusts` names other origins that may ask.
    """
    host = headers.get("host", "")
    own = [f"{name}:{port}" for port in ports for name in ("127.0.0.1", "localhost")]
    if host not in own:
        return f"Host is {host!r}; must be {' or '.join(own)}. Ask by that address."
    origin = headers.get("origin")
    if origin is not None and trusts(origin):
        return None
    if origin not in {None, f"http://{host}"}:
        return _from_page("Origin", origin)
    site = headers.get("sec-fetch-site")
    return None if site in _OWN_SITES else _from_page("Sec-Fetch-Site", site)


def _from_page(header: str, value: str | None) -> str:
    return (
        f"{header} is {value!r}: a page of another origin must not ask this port. "
        "Ask from a program, which does not send this header."
    )


def refusal_of(
    request: "BaseRequest", trusts: Callable[[str], bool] = lambda _origin: False
) -> str | None:
    """Say why a request that aiohttp serves has to be refused."""
    port = request.transport.get_extra_info("sockname")[1] if request.transport else 0
    return refusal(request.headers, [port], trusts)
