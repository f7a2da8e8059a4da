"""Run new code at once, without a deployment of its stack; for the development loop."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from lambda_pg_cdk.layer.build import zipped
from lambda_pg_cdk.local.daemon.reconciler import Reconciler
from lambda_pg_cdk.local.deployment.deployed import Function
from lambda_pg_cdk.local.deployment.direct import Direct
from lambda_pg_cdk.local.environments.account import Account

_FAST = 1
"""Compression of a zip file that stays on this machine."""


class NoAliasError(LookupError):
    """The function has no alias that could move to another version: it needs a deployment."""


class Updates:
    """New code of functions, and a new layer; the caller sees to it that no deployment runs."""

    def __init__(self, direct: Direct, account: Account, reconciler: Reconciler) -> None:
        """Take the control plane's side, what runs, and what makes one follow the other."""
        self._direct = direct
        self._account = account
        self._reconciler = reconciler
        self._superseded: set[Path] = set()
        """Unpacked code and layers that were replaced here and may still run."""

    async def update_code(self, folder: str, code: Path) -> None:
        """Run the code of a folder; raise `CodeError`, `NoAliasError` or `UnknownFunctionError`."""
        function = self._account.find(folder).function
        if (alias := self._reconciler.alias(function.name)) is None:
            raise NoAliasError(f"{folder} has no alias: only a deployment gives it new code")
        archive = await asyncio.to_thread(zipped, code, _FAST)
        version = await asyncio.to_thread(self._direct.publish_code, function.name, archive)
        await self._release(function, alias, version)

    async def update_layer(self, layer: Path) -> list[str]:
        """Run a layer in all functions that have it and an alias; return their folders."""
        archive = await asyncio.to_thread(zipped, layer, _FAST)
        arn = await asyncio.to_thread(self._direct.publish_layer, archive)
        changed = []
        for function in self._account.functions():
            if (alias := self._reconciler.alias(function.name)) is None:
                continue
            version = await asyncio.to_thread(self._direct.take_layer, function.name, arn)
            if version is not None:
                await self._release(function, alias, version)
                changed.append(function.folder)
        await asyncio.to_thread(self._direct.discard_layers)
        return sorted(changed)

    async def _release(self, function: Function, alias: str, version: str) -> None:
        name, direct = function.name, self._direct
        replaces_own = direct.owns(name, function.version)
        try:
            await self._reconciler.release(
                name, alias, version, move=lambda: direct.move(name, alias, version)
            )
        except BaseException:
            await asyncio.to_thread(direct.take_back, name, alias, version)
            raise
        if replaces_own:  # the code of a stack's version may be needed again
            self._superseded |= {function.code, *function.layers}
        await self._remove_superseded()

    async def _remove_superseded(self) -> None:
        """Remove what nothing runs any more: fifty saves would fill the disk."""
        unused = self._superseded - self._account.folders()
        self._superseded -= unused
        for folder in unused:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    @asynccontextmanager
    async def set_aside(self) -> AsyncIterator[None]:
        """Have functions be what their stacks say while the block deploys, and after it.

        Requests run the newest code until then, and also after a deployment that fails.
        """
        await asyncio.to_thread(self._direct.restore)
        for function in self._account.functions():
            if self._direct.owns(function.name, function.version):
                self._superseded |= {function.code, *function.layers}
        try:
            yield
        except BaseException:
            await asyncio.to_thread(self._direct.resume)
            raise
        await asyncio.to_thread(self._direct.follow_stacks)
