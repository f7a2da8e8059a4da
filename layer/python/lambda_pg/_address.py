"""The addresses of a host, within a time: libpq would wait for the resolver without limit."""

import re
import socket
import threading
from typing import Final

import psycopg

from lambda_pg._overload import NotReachedError

_NAME: Final = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?", re.ASCII)
"""What can be a host's name. libc would call anything else an unknown host."""

_LOOPBACK_6: Final = (1).to_bytes(16, "big")
"""The address ::1."""


def resolve(host: str, timeout: float) -> list[str]:
    """Return the addresses of `host` in the resolver's order; an address is returned as it is.

    The lookup runs in a separate thread, which is left behind if it is too slow. `localhost` has
    only addresses of the loopback (RFC 6761), whatever else the resolver returns: settings may let
    it do without TLS. Raises psycopg.OperationalError, with the resolver's error as its cause.
    """
    if _is_address(host):
        return [host]
    if _NAME.fullmatch(host) is None or len(host) > 254:
        raise psycopg.OperationalError(f"cannot resolve {host}: it is not the name of a host")
    lookup = _Lookup(host)
    lookup.start()
    lookup.join(timeout)
    if lookup.error is not None:
        raise NotReachedError(f"cannot resolve {host}: {lookup.error.strerror}") from lookup.error
    if lookup.addresses is None:
        raise psycopg.errors.ConnectionTimeout(
            f"the resolver did not answer for {host} within {timeout:.1f} s"
        )
    return _only_loopback(host, lookup.addresses) if _is_localhost(host) else lookup.addresses


def is_loopback(host: str) -> bool:
    """Tell whether a connection to a host stays on this machine: 127.0.0.0/8, ::1, localhost."""
    packed = _packed(host)
    if packed is None:
        return _is_localhost(host)
    return packed[0] == 127 if len(packed) == 4 else packed == _LOOPBACK_6


def _is_localhost(host: str) -> bool:
    return host.lower().removesuffix(".") == "localhost"


def _only_loopback(host: str, addresses: list[str]) -> list[str]:
    here = [address for address in addresses if is_loopback(address)]
    if not here:
        raise psycopg.OperationalError(
            f"cannot resolve {host}: the resolver returns {', '.join(addresses)}, which is not "
            "this machine; write 127.0.0.1, or the name of the other machine"
        )
    return here


class _Lookup(threading.Thread):
    def __init__(self, host: str) -> None:
        super().__init__(name=f"resolve {host}", daemon=True)
        self.host = host
        self.addresses: list[str] | None = None
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            # Bytes: for a str Python imports its idna codec, 1.5 ms of a cold start (measured).
            found = socket.getaddrinfo(self.host.encode("ascii"), None, type=socket.SOCK_STREAM)
        except OSError as error:  # a gaierror; for EAI_SYSTEM Python raises the class of its errno
            self.error = error
        else:
            self.addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _is_address(host: str) -> bool:
    return _packed(host) is not None


def _packed(host: str) -> bytes | None:
    """Return the bytes of an address, None for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
    return None
