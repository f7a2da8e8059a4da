"""Start and control the balancer's process."""

from pathlib import Path
from typing import Any

from lambda_pg_cdk.local.processes.json_process import JsonProcess


class Front:
    """The one address that clients connect to; a balancer that dies is restarted."""

    def __init__(self, log: Path, port: int, target_port: int) -> None:
        """Take the port to listen on and the port of the tasks; nothing is started yet."""
        self._registered: list[str] = []
        self._process = JsonProcess(
            "lambda_pg_cdk.local.pooler_service.balancer", [str(port), str(target_port)], log
        )

    @property
    def running(self) -> bool:
        """Tell whether the balancer's process runs."""
        return self._process.running

    async def start(self) -> None:
        """Start the balancer, which reserves its port at once; raise RuntimeError."""
        await self._ask({})

    async def register(self, addresses: list[str]) -> None:
        """Send new flows to these targets; flows to others go on."""
        self._registered = addresses
        await self._ask({"registered": addresses})

    async def flows(self) -> dict[str, int]:
        """Return how many flows each target has."""
        return dict((await self._ask({}))["flows"])

    def kill(self) -> None:
        """End the balancer and its flows."""
        self._process.kill()

    async def close(self) -> None:
        """End the balancer and wait for its end."""
        await self._process.close()

    async def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        return await self._process.ask(order, restarted={"registered": self._registered})
