"""Faults between functions and pooler, and between pooler and database."""

import asyncio
from pathlib import Path
from typing import Any, Final, Literal, get_args

from lambda_pg_cdk.local.processes.json_process import JsonProcess

Kind = Literal["stall", "blackhole", "reset", "latency", "refuse"]
KINDS: Final[tuple[Any, ...]] = get_args(Kind)


class Wires:
    """Starts and controls the process with the fault proxies."""

    def __init__(self, log: Path, ports: dict[str, tuple[int, int]]) -> None:
        """Take the port of each wire and of its server on 127.0.0.1; nothing is started yet."""
        arguments = [f"{name}:{port}:{server}" for name, (port, server) in ports.items()]
        self._process = JsonProcess("lambda_pg_cdk.local.faults.wires.process", arguments, log)
        self._asking = asyncio.Lock()  # held for the check that it runs and the order

    async def start(self) -> None:
        """Open the wires; raise RuntimeError."""
        await self._process.ask({})

    async def accepted(self) -> dict[str, int]:
        """Return how many connections each wire has accepted so far."""
        return dict(await self._ask({}))

    async def begin(self, wire: str, kind: str) -> None:
        """Begin a fault, unless it is active; raise ValueError for an unknown one."""
        await self._order("begin", wire, kind)

    async def end(self, wire: str, kind: str) -> None:
        """End a fault, if it is active."""
        await self._order("end", wire, kind)

    async def close(self) -> None:
        """End the process and its connections."""
        await self._process.close()

    async def _order(self, verb: str, wire: str, kind: str) -> None:
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is not a fault of a wire; use one of {', '.join(KINDS)}")
        answer = await self._ask({verb: kind, "wire": wire})
        if "error" in answer:
            raise ValueError(answer["error"])

    async def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Send an order; if the process had ended, start it and raise: its faults are lost."""
        async with self._asking:
            if not self._process.running:
                await self.start()
                raise RuntimeError(
                    "the wires had ended, with all connections and faults; they are open again"
                )
            return await self._process.ask(order)
