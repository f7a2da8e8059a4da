"""Refuse requests of web pages to a port of the local cloud. No I/O.

A browser lets any page send requests to loopback, also by a name of the page's domain (DNS
rebinding). The browser adds headers with the page's origin, which the page cannot change.
"""

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the control plane's virtual environment has no aiohttp
    from aiohttp.web import BaseRequest

_PORTS = 2048
"""How many ports' addresses are remembered: each environment has a port, and asks three times."""

_OWN_SITES = {None, "none", "same-origin"}  # "none": entered in the address bar


def refusal(
    headers: Mapping[str, str],
    ports: Collection[int],
    trusts: Callable[[str], bool] = lambda _origin: False,
) -> str | None:
    """Return why to refuse a request; None for one of a program, or of the port's own page.

    The names of `headers` are in lower case, or their case does not matter. `ports` are those that
    the request may name; `trusts` tells whether another origin is allowed.
    """
    return refusal_at(_loopback(tuple(ports)), headers, trusts)


def refusal_at(
    own: Collection[str], headers: Mapping[str, str], trusts: Callable[[str], bool]
) -> str | None:
    """Do as `refusal` does, for a server that is at these URLs."""
    host = headers.get("host", "")
    origins = _origins(tuple(own))
    if host not in origins:
        return f"Host is {host!r}; must be {' or '.join(origins)}. Ask by that address."
    origin = headers.get("origin")
    if origin is not None and trusts(origin):
        return None
    if origin not in {None, origins[host]}:
        return _from_page("Origin", origin)
    site = headers.get("sec-fetch-site")
    return None if site in _OWN_SITES else _from_page("Sec-Fetch-Site", site)


@lru_cache(maxsize=_PORTS)
def _loopback(ports: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"http://{name}:{port}" for port in ports for name in ("127.0.0.1", "localhost"))


@lru_cache(maxsize=_PORTS)
def _origins(own: tuple[str, ...]) -> dict[str, str]:
    """Return the URLs by what a Host header says."""
    return {url.partition("://")[2]: url for url in own}


def _from_page(header: str, value: str | None) -> str:
    return (
        f"{header} is {value!r}: a page of another origin must not ask this port. "
        "Ask from a program, which does not send this header."
    )


def refusal_of(
    request: "BaseRequest", trusts: Callable[[str], bool] = lambda _origin: False
) -> str | None:
    """Return why to refuse a request that aiohttp serves; None if it is allowed."""
    port = request.transport.get_extra_info("sockname")[1] if request.transport else 0
    return refusal(request.headers, [port], trusts)
