"""Follow changes that others make, with the CDK command line or the AWS APIs."""

import asyncio
import sys
from datetime import timedelta

import aiohttp
from yarl import URL

from lambda_pg_cdk.local.control_plane import changes
from lambda_pg_cdk.local.control_plane.signatures import presign
from lambda_pg_cdk.local.daemon.deployments import Deployments
from lambda_pg_cdk.local.daemon.layout import Layout
from lambda_pg_cdk.local.daemon.reconciler import Reconciler

_INTERVAL_SECONDS = 1.0
_SIGNATURE_LIFETIME = timedelta(minutes=1)


class Follower:
    """Reconciles when the control plane reports a change, then every second until it is over."""

    def __init__(
        self,
        layout: Layout,
        region: str,
        session: aiohttp.ClientSession,
        deployments: Deployments,
        reconciler: Reconciler,
    ) -> None:
        self._url = f"{layout.endpoint}{changes.PATH}"
        self._key = layout.key
        self._region = region
        self._session = session
        self._deployments = deployments
        self._reconciler = reconciler

    async def run(self) -> None:
        """Follow changes for ever."""
        known, settled = 0, False
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            try:
                if settled:
                    known = await self._next_change(known)
                settled = not self._deployments.busy and await self._reconciler.follow()
            except Exception as error:  # noqa: BLE001 - retried in a second
                settled = False
                print(f"reconcile: {error!r}", file=sys.stderr, flush=True)

    async def _next_change(self, known: int) -> int:
        """Wait until the control plane has counted another change, or for a minute."""
        signed = presign(f"{self._url}?known={known}", self._key, self._region, _SIGNATURE_LIFETIME)
        async with self._session.get(URL(signed, encoded=True)) as response:
            response.raise_for_status()
            return int((await response.json())["count"])
