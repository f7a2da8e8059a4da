"""Deploy the app to this cloud, for the first time and again."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lambda_pg_cdk.local.daemon.layout import Layout
from lambda_pg_cdk.local.daemon.progress import Progress
from lambda_pg_cdk.local.daemon.reconciler import Reconciler
from lambda_pg_cdk.local.daemon.updates import Updates
from lambda_pg_cdk.local.deployment.cdk import STAGE, Cdk, merge
from lambda_pg_cdk.local.http_api.issuer import AUDIENCE
from lambda_pg_cdk.local.install import bytecode
from lambda_pg_cdk.local.options import Options
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import load, read_context


def own_settings(layout: Layout) -> dict[str, Any]:
    """Return the settings of the stage that only this cloud knows: its addresses."""
    return {
        "pgbouncer": {"endpoint_host": "127.0.0.1", "port": layout.ports.pooler},
        "database": {"ca_file": str(layout.folder / "postgres" / "ca.pem")},
        "identity": {"issuer": layout.issuer.url, "audience": [AUDIENCE]},
    }


def stage_settings(app: Path, override: Mapping[str, Any]) -> Config:
    """Read the settings of an app's stage `local`, with an override on top."""
    context = read_context(app / "cdk.json")
    return load({**context, "stage": STAGE, "override": json.dumps(override)}.get)


class Deployments:
    """The app that is deployed, with its settings; one deployment at a time."""

    def __init__(
        self,
        cdk: Cdk,
        reconciler: Reconciler,
        progress: Progress,
        options: Options,
        own: Mapping[str, Any],
        updates: Updates,
    ) -> None:
        """Take the app and its settings from the options; `own` are the cloud's own settings."""
        self._cdk = cdk
        self._reconciler = reconciler
        self._progress = progress
        self._app = options.app
        self._entry = options.entry
        self._override: Mapping[str, Any] = options.override
        self._own = own
        self._updates = updates
        self._deploying = asyncio.Lock()

    @property
    def busy(self) -> bool:
        """Whether a deployment is under way."""
        return self._deploying.locked()

    async def synthesise(self) -> None:
        """Synthesise the stacks."""
        async with self._progress.step("cdk synth"):
            await self._cdk.synth(self._app, self._entry, self._settings)
        await asyncio.to_thread(bytecode.keep)

    async def bootstrap(self) -> None:
        """Prepare the account for deployments."""
        async with self._progress.step("cdk bootstrap"):
            await self._cdk.bootstrap()

    async def deploy(self) -> None:
        """Deploy what has been synthesised, and run it; raise `DeploymentError`."""
        async with self._progress.step("cdk deploy --all"):
            await self._cdk.deploy(self._app)
        await self._run()

    async def repeat(
        self, app: Path | None = None, override: Mapping[str, Any] | None = None
    ) -> None:
        """Synthesise and deploy again; raise `DeploymentError`.

        None keeps the app or the override of before. After a rollback the older version runs.
        """
        async with self._deploying:
            self._app = app or self._app
            self._override = self._override if override is None else override
            try:
                async with self._updates.set_aside():
                    await self._cdk.synth_and_deploy(self._app, self._entry, self._settings)
            finally:
                await self._run()

    async def update_code(self, folder: str, code: Path) -> None:
        """Run new code of one function, without its stack; raise as `Updates` does."""
        async with self._deploying:
            await self._updates.update_code(folder, code)

    async def update_layer(self, layer: Path) -> list[str]:
        """Run a new layer, without its stack; return the functions that have it."""
        async with self._deploying:
            return await self._updates.update_layer(layer)

    @property
    def _settings(self) -> dict[str, Any]:
        """What the app gets on top of its settings."""
        return merge(self._own, self._override)

    async def _run(self) -> None:
        async with self._progress.step("functions, API and pooler"):
            await self._reconciler.settle()
