"""The process with a fault proxy on each wire; it reads orders and writes answers as JSON lines.

    python -m lambda_pg_cdk.local.faults.wires.process pooler:6432:6433 database:5432:5433

The numbers are the port of the wire and the port of the server. An order is `{}`,
`{"begin": "stall", "wire": "pooler"}` or the same with `end`; the answer is how many connections
each wire has accepted, or `{"error": …}`. The process ends with its input.
"""

import json
import sys
from contextlib import ExitStack
from typing import Any, Final

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.faults.proxy import Fault, FaultProxy
from lambda_pg_cdk.local.faults.wires import Kind

LATENCY: Final = 0.1
"""Delay of a slow wire in each direction, in seconds."""


class Wire:
    """One fault proxy and its active faults."""

    def __init__(self, proxy: FaultProxy) -> None:
        """Begin without a fault."""
        self._proxy = proxy
        self._faults: dict[str, Fault] = {}

    @property
    def accepted(self) -> int:
        """The number of connections so far."""
        return self._proxy.accepted

    def begin(self, kind: Kind) -> None:
        """Begin a fault, unless it is active; a reset is instant."""
        if kind in self._faults:
            return
        match kind:
            case "reset":
                self._proxy.reset()
            case "stall":
                self._faults[kind] = self._proxy.stall()
            case "blackhole":
                self._faults[kind] = self._proxy.blackhole()
            case "latency":
                self._faults[kind] = self._proxy.latency(LATENCY)
            case "refuse":
                self._faults[kind] = self._proxy.refuse()

    def end(self, kind: Kind) -> None:
        """End a fault, if it is active."""
        if kind in self._faults:
            self._faults.pop(kind).end()


def answer(wires: dict[str, Wire], order: dict[str, Any]) -> dict[str, Any]:
    """Carry an order out and return its answer."""
    try:
        if "begin" in order:
            wires[order["wire"]].begin(order["begin"])
        if "end" in order:
            wires[order["wire"]].end(order["end"])
    except KeyError as unknown:
        return {"error": f"wire {unknown} does not exist"}
    except OSError as error:
        return {"error": str(error)}
    return {name: wire.accepted for name, wire in wires.items()}


def main(arguments: list[str]) -> None:
    """Open a wire for each argument and serve until the input ends."""
    processes.raise_open_files_limit()
    with ExitStack() as opened:
        wires = {}
        for argument in arguments:
            name, port, server = argument.split(":")
            proxy = FaultProxy("127.0.0.1", int(server), listen_port=int(port))
            wires[name] = Wire(opened.enter_context(proxy))
        for line in sys.stdin:
            print(json.dumps(answer(wires, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
