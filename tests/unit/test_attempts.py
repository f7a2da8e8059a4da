"""Connects under way: which goes on, which gets another beside it, and which is dropped."""

import os
import socket
import threading
import time
from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import psycopg
import pytest
from lambda_pg import _attempts as attempts_module
from lambda_pg._attempts import KEPT, MOST, PACE, SLOW, Attempt, ConnectAttempts
from lambda_pg._credentials import Credentials
from lambda_pg._overload import NotReachedError
from psycopg.waiting import Ready, Wait

LOGIN = Credentials("app", "p")
CONNECTION: Any = SimpleNamespace()


class Peer:
    """A server of two sockets: what is written to `end` arrives at the connect."""

    def __init__(self, *, steps: int = 2) -> None:
        """Want so many answers."""
        self.own, self.end = socket.socketpair()
        self.steps = steps
        self.closed = False

    def opening(self) -> Generator[tuple[int, Wait], Ready | int, Any]:
        """Connect as libpq does: write once, then read each answer."""
        try:
            yield self.own.fileno(), Wait.W
            for _ in range(self.steps):
                yield self.own.fileno(), Wait.R
                if not self.own.recv(1):
                    raise psycopg.OperationalError("server closed the connection unexpectedly")
            return CONNECTION
        finally:
            self.closed = True

    def answer(self) -> None:
        """Send one answer."""
        self.end.send(b"x")


class Network:
    """What begins connects: one peer after the other."""

    def __init__(self) -> None:
        """Know no peer yet."""
        self.peers: list[Peer] = []
        self.refuses = False

    def begin(self) -> Attempt:
        """Begin a connect to a new peer."""
        if self.refuses:
            raise NotReachedError("connection refused")
        self.peers.append(Peer())
        return Attempt(self.peers[-1].opening(), f"10.0.0.{len(self.peers)}")


@pytest.fixture
def network() -> Iterator[Network]:
    """A network whose sockets are closed at the end."""
    network = Network()
    yield network
    for peer in network.peers:
        peer.own.close()
        peer.end.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a tenth."""
    for name in ("UNCONNECTED", "UNANSWERED", "LONGEST_UNANSWERED"):
        monkeypatch.setattr(attempts_module, name, getattr(attempts_module, name) / 10)


def finish(attempts: ConnectAttempts, network: Network, seconds: float) -> Any:
    """Drive the connects for some seconds."""
    return attempts.finish(network.begin, time.monotonic() + seconds)


def test_a_connect_that_is_answered_is_finished(network: Network) -> None:
    """The usual way: one connect."""

    def answer() -> None:
        for _ in range(2):
            network.peers[0].answer()

    timer = threading.Timer(0.02, answer)
    timer.start()
    assert finish(ConnectAttempts(LOGIN), network, 5) is CONNECTION
    timer.join()
    assert len(network.peers) == 1


def test_a_login_once_begun_is_finished_by_the_next_request(network: Network) -> None:
    """However long its answers take, no other is begun, and none of its work is lost."""
    attempts = ConnectAttempts(LOGIN)
    assert finish(attempts, network, 0.02) is None
    network.peers[0].answer()
    for _ in range(3):
        assert finish(attempts, network, 0.1) is None
        assert attempts.is_answered
    network.peers[0].answer()
    assert finish(attempts, network, 5) is CONNECTION
    assert len(network.peers) == 1


def test_a_connect_without_an_answer_leaves_time_for_others(network: Network) -> None:
    """They stay open beside it; the first that is answered is taken, the others are closed."""
    attempts = ConnectAttempts(LOGIN)
    while len(attempts.silent) < 2:
        assert finish(attempts, network, 0.02) is None
    answered = network.peers[len(network.peers) - len(attempts.silent)]
    answered.answer()
    while not attempts.is_answered:
        assert finish(attempts, network, 0.02) is None
    assert [peer for peer in network.peers if not peer.closed] == [answered]
    answered.answer()
    assert finish(attempts, network, 5) is CONNECTION


def test_a_slow_login_goes_on_after_a_while(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer took long: a crowd logs in, and the next step waits, so that it spreads."""
    monkeypatch.setattr(attempts_module, "jitter", SimpleNamespace(uniform=lambda _, most: most))
    attempts = ConnectAttempts(LOGIN)
    assert finish(attempts, network, 0.02) is None
    network.peers[0].answer()
    assert finish(attempts, network, SLOW + 0.05) is None
    network.peers[0].answer()
    began = time.monotonic()
    assert finish(attempts, network, 5) is CONNECTION
    assert time.monotonic() - began > PACE * SLOW


def test_time_between_two_requests_is_not_what_a_login_takes(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looked for the answer meanwhile: neither this login nor another one rests for it."""
    passed = 0.0
    monkeypatch.setattr(attempts_module, "monotonic", lambda: time.monotonic() + passed)
    monkeypatch.setattr(attempts_module, "SLOW", 5.0)
    jitter = Mock()
    jitter.uniform.return_value = 0.0
    monkeypatch.setattr(attempts_module, "jitter", jitter)
    attempts = ConnectAttempts(LOGIN)
    for _ in range(2):
        assert attempts.finish(network.begin, time.monotonic() + passed + 0.02) is None
        network.peers[0].answer()
        passed += 20.0
    assert attempts.finish(network.begin, time.monotonic() + passed + 5) is CONNECTION
    jitter.uniform.assert_not_called()
    assert attempts.login_seconds < 5.0
    assert len(network.peers) == 1


def test_sockets_are_few_and_waits_grow(network: Network) -> None:
    """An overloaded pooler keeps a connect in sight for longer and longer."""
    attempts = ConnectAttempts(LOGIN)
    assert finish(attempts, network, 1.3) is None
    assert len(attempts.silent) == MOST
    assert sum(not peer.closed for peer in network.peers) == MOST
    assert len(network.peers) <= 8  # 0, 75, 150, 225, 300, 450, 750 and 1350 ms
    assert all(peer.closed for peer in network.peers[:-MOST])
    attempts.close()
    assert all(peer.closed for peer in network.peers)


def test_a_refusal_beside_a_silence_is_waited_out(network: Network) -> None:
    """Another connect may still succeed; without one, the error is the caller's."""
    attempts = ConnectAttempts(LOGIN)
    assert finish(attempts, network, 0.02) is None
    network.refuses = True
    assert finish(attempts, network, 0.2) is None
    for _ in range(2):
        network.peers[0].answer()
    assert finish(attempts, network, 5) is CONNECTION
    with pytest.raises(NotReachedError):
        finish(ConnectAttempts(LOGIN), network, 5)


def test_an_error_after_an_answer_ends_all(network: Network) -> None:
    """A server has said something: the caller gets it."""
    attempts = ConnectAttempts(LOGIN)
    assert finish(attempts, network, 0.1) is None
    network.peers[0].end.close()
    with pytest.raises(psycopg.OperationalError, match="closed the connection"):
        finish(attempts, network, 5)


def test_what_rests_for_long_or_has_other_credentials_is_not_resumed(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen environment begins again, and so does one whose secret was rotated."""
    attempts = ConnectAttempts(LOGIN)
    finish(attempts, network, 0.02)
    assert attempts.may_go_on(Credentials("app", "p"))
    assert not attempts.may_go_on(Credentials("app", "rotated"))
    for passed in (KEPT + 1, -3600):
        clock = SimpleNamespace(time=lambda passed=passed: time.time() + passed)
        monkeypatch.setattr(attempts_module, "time", clock)
        assert not attempts.may_go_on(LOGIN)


def test_a_forked_child_leaves_its_parents_connects_alone(network: Network) -> None:
    """It begins its own, and its end tells the parent's server nothing."""
    attempts = ConnectAttempts(LOGIN)
    finish(attempts, network, 0.02)
    child = os.fork()
    if child == 0:
        finish(attempts, network, 0.02)
        os._exit(0 if attempts.silent == ["10.0.0.2"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for _ in range(2):
        network.peers[0].answer()
    assert finish(attempts, network, 5) is CONNECTION
