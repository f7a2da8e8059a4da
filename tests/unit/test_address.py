"""Names of hosts: resolved within a time, and told apart where they cannot be."""

import ctypes
import errno
import socket
import threading
import time
from collections.abc import Callable

import psycopg
import pytest
from lambda_pg._address import resolve
from lambda_pg._failures import RESOLVER, Failure, classify_connect

Resolver = Callable[..., list[tuple[object, ...]]]


def refuse(code: int) -> Resolver:
    """Answer as this machine's resolver does for a code, with its own text."""
    text = ctypes.CDLL(None).gai_strerror
    text.restype = ctypes.c_char_p

    def resolver(*_: object, **__: object) -> list[tuple[object, ...]]:
        raise socket.gaierror(code, text(code).decode())

    return resolver


def find(*addresses: str) -> Resolver:
    """Answer with these addresses."""

    def resolver(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in addresses]

    return resolver


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.255", "::1", "2001:db8::1"])
def test_an_address_is_its_own(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """What is an address is not asked for, and needs no thread."""
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert resolve(address, 0) == [address]


def test_a_name_is_resolved() -> None:
    """The resolver of the machine is the one that is asked."""
    assert set(resolve("localhost", 5)) & {"127.0.0.1", "::1"}


def test_addresses_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver sorts by preference (RFC 6724): so are they tried, each once."""
    order = [f"10.0.0.{last}" for last in (3, 1, 4, 15, 9, 2, 6)]
    monkeypatch.setattr(socket, "getaddrinfo", find("::2", *order, *order))
    assert resolve("db.example", 5) == ["::2", *order]


@pytest.mark.parametrize("name", ["localhost", "LocalHost", "localhost."])
def test_localhost_is_this_machine(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever else a resolver returns is left out: the connection may be one without TLS."""
    monkeypatch.setattr(socket, "getaddrinfo", find("10.0.0.1", "::1", "127.0.0.1", "2001:db8::1"))
    assert resolve(name, 5) == ["::1", "127.0.0.1"]


def test_a_localhost_that_is_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the address, and with what to write; it is not retried."""
    monkeypatch.setattr(socket, "getaddrinfo", find("10.0.0.1"))
    with pytest.raises(psycopg.OperationalError, match=r"10\.0\.0\.1, .*127\.0\.0\.1") as caught:
        resolve("localhost", 5)
    assert classify_connect(caught.value) is Failure.FINAL


@pytest.mark.parametrize("name", [name for name in RESOLVER if hasattr(socket, name)])
def test_an_error_of_the_resolver_is_told_by_its_number(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever language this machine's resolver speaks, the table is what decides."""
    monkeypatch.setattr(socket, "getaddrinfo", refuse(getattr(socket, name)))
    with pytest.raises(psycopg.OperationalError, match=r"cannot resolve db\.example: ") as caught:
        resolve("db.example", 5)
    assert isinstance(caught.value.__cause__, socket.gaierror)
    assert classify_connect(caught.value) is RESOLVER[name]


def test_a_resolver_that_cannot_work_here_may_be_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For EAI_SYSTEM Python raises what errno says, as without file descriptors."""

    def exhausted(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Zu viele offene Dateien")

    monkeypatch.setattr(socket, "getaddrinfo", exhausted)
    with pytest.raises(psycopg.OperationalError, match="Zu viele offene Dateien") as caught:
        resolve("db.example", 5)
    assert classify_connect(caught.value) is Failure.NOT_RUN


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a..example",
        ".example",
        "a" * 64 + ".example",
        "a." * 127 + "a",
        "a b",
        "ü\ud800",
        "x\0y",
    ],
)
def test_what_cannot_be_a_name_is_final(name: str) -> None:
    """No name whatsoever ends in a traceback from inside, or is asked for again."""
    with pytest.raises(psycopg.OperationalError, match="cannot resolve") as caught:
        resolve(name, 5)
    assert classify_connect(caught.value) is Failure.FINAL


def test_a_stalled_resolver_costs_the_timeout_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup cannot be ended, but who waits for it can go on; another one may succeed."""
    answers = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.wait(10) and [])
    began = time.monotonic()
    with pytest.raises(
        psycopg.errors.ConnectionTimeout, match=r"db\.example within 0\.2"
    ) as caught:
        resolve("db.example", 0.2)
    assert 0.2 <= time.monotonic() - began < 2
    assert classify_connect(caught.value) is Failure.NOT_RUN
    answers.set()


def test_a_lookup_without_time_left_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connect whose time is up asks once and waits for nothing."""
    answers = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.wait(10) and [])
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        resolve("db.example", -1)
    answers.set()
