"""Faults on the ways from functions to the pooler and from there to the database."""

import asyncio
from pathlib import Path
from typing import Any, Final, Literal, get_args

from lambda_pg_cdk.local.processes.json_process import JsonProcess

Kind = Literal["stall", "blackhole", "reset", "latency", "refuse"]
KINDS: Final[tuple[Any, ...]] = get_args(Kind)


class Wires:
    """The process with the fault proxies, as the daemon sees it."""

    def __init__(self, log: Path, ports: dict[str, tuple[int, int]]) -> None:
        """Take each wire's port and its server's, both on 127.0.0.1; nothing is started yet."""
        arguments = [f"{name}:{port}:{server}" for name, (port, server) in ports.items()]
        self._process = JsonProcess("lambda_pg_cdk.local.faults.wires.process", arguments, log)
        self._asking = asyncio.Lock()  # whether it is there, and what it is asked, are one step

    async def start(self) -> None:
        """Open the wires; raise RuntimeError."""
        await self._process.ask({})

    async def accepted(self) -> dict[str, int]:
        """Return how many connections each wire has accepted so far."""
        return dict(await self._ask({}))

    async def begin(self, wire: str, kind: str) -> None:
        """Begin a fault that is not there yet; raise ValueError for an unknown one."""
        await self._order("begin", wire, kind)

    async def end(self, wire: str, kind: str) -> None:
        """End a fault, if it is there."""
        await self._order("end", wire, kind)

    async def close(self) -> None:
        """End the process and what goes through it."""
        await self._process.close()

    async def _order(self, verb: str, wire: str, kind: str) -> None:
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is no fault of a wire; there are {', '.join(KINDS)}")
        answer = await self._ask({verb: kind, "wire": wire})
        if "error" in answer:
            raise ValueError(answer["error"])

    async def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Ask the process; one that has ended took its faults with it, which nobody may miss."""
        async with self._asking:
            if not self._process.running:
                await self.start()
                raise RuntimeError(
                    "the wires had ended, with every connection and fault; they are open again"
                )
            return await self._process.ask(order)
