"""Run what is deployed: functions, APIs and pooler."""

import asyncio
from collections.abc import Callable

from lambda_pg_cdk.local.daemon.api_ports import ApiPorts
from lambda_pg_cdk.local.deployment.deployed import Deployed
from lambda_pg_cdk.local.deployment.inventory import Inventory
from lambda_pg_cdk.local.environments.account import Account
from lambda_pg_cdk.local.pooler_service.service import PoolerService


class Reconciler:
    """Makes functions, APIs and pooler what the control plane says is deployed."""

    def __init__(
        self, inventory: Inventory, account: Account, apis: ApiPorts, pooler: PoolerService
    ) -> None:
        self._inventory = inventory
        self._account = account
        self._apis = apis
        self._pooler = pooler
        self._reconciling = asyncio.Lock()
        self._signature = ""

    async def settle(self) -> None:
        """Run what is deployed now, and wait for the pooler's tasks."""
        await self.reconcile()
        await self._pooler.settle()

    async def reconcile(self) -> None:
        """Run what is deployed now: functions and APIs at once, the pooler's tasks soon after."""
        async with self._reconciling:
            signature = await asyncio.to_thread(self._inventory.signature)
            deployed: Deployed = await asyncio.to_thread(self._inventory.read)
            for function in deployed.functions:
                await self._account.update(function)
            await self._account.keep_only(function.name for function in deployed.functions)
            await self._apis.follow(deployed.apis, deployed.domains)
            self._pooler.follow(deployed.pooler)
            self._signature = signature

    async def follow(self) -> bool:
        """Reconcile if something has changed; return False while a stack is being changed."""
        signature = await asyncio.to_thread(self._inventory.signature)
        if "_IN_PROGRESS" in signature:
            return False
        if signature != self._signature:
            await self.reconcile()
        return True

    def alias(self, name: str) -> str | None:
        """Return the alias or the version that requests of a function go to, if it has one."""
        return self._inventory.alias(name)

    async def release(self, name: str, alias: str, version: str, move: Callable[[], None]) -> None:
        """Start an environment of a version; if it starts, move the alias, and run it.

        Requests run the version before until then. Raise `CodeError` if it does not start.
        """
        async with self._reconciling:
            await self._account.try_out(
                await asyncio.to_thread(self._inventory.function, name, version)
            )
            await asyncio.to_thread(move)
            await self._account.update(
                await asyncio.to_thread(self._inventory.function, name, alias)
            )

    async def prepare(self, name: str, version: str) -> str:
        """Load a version of a function as it is now; return the name to invoke it by.

        The control plane asks for this during a deployment. Raises LookupError.
        """
        qualifier = None if version == "$LATEST" else version
        function = await asyncio.to_thread(self._inventory.function, name, qualifier)
        return await self._account.update_version(function)
