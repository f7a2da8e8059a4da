"""The ports that local servers get."""

import socket
from pathlib import Path

import pytest

from lambda_pg_cdk.local import processes

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LINUX = 32768
"""Where that range begins unless somebody has changed it."""


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
def test_a_port_that_is_taken_at_any_address_is_not_free(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """Tasks of a pooler listen at different addresses."""
    free = processes.free_port()
    with socket.create_server((address, 0)) as listener:
        taken = listener.getsockname()[1]
        monkeypatch.setattr("random.sample", lambda *_: [taken, free])
        assert processes.free_port() == free


def test_several_ports_are_different_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing holds the first while the next one is chosen."""
    free = processes.free_ports(2)
    assert len(set(free)) == 2
    monkeypatch.setattr("random.sample", lambda *_: free)
    assert processes.free_ports(2) == free


def test_no_free_port_is_an_error_that_names_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not look for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        monkeypatch.setattr("random.sample", lambda *_: [taken])
        with pytest.raises(OSError, match="10000"):
            processes.free_port()


def test_the_kernel_gives_no_connection_such_a_port() -> None:
    """Or a client could sit on the port of a server that is away; unless the machine is set so."""
    lowest = int(RANGE.read_text().split()[0]) if RANGE.exists() else LINUX
    if lowest < LINUX:
        pytest.skip(f"this machine's connections have ports from {lowest} on")
    assert processes.PORTS.stop <= lowest
