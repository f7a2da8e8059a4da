"""Start the parts of a cloud, and end them in reverse order."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from lambda_pg_cdk.local.daemon.control import control_application
from lambda_pg_cdk.local.daemon.front_ends import FrontEnd, issuer_server
from lambda_pg_cdk.local.daemon.layout import Layout
from lambda_pg_cdk.local.daemon.parts import Parts, make_parts
from lambda_pg_cdk.local.daemon.progress import Progress
from lambda_pg_cdk.local.install import installed
from lambda_pg_cdk.local.options import Options


async def run(folder: Path, options: Options, progress: Progress, stopping: asyncio.Event) -> None:
    """Run a cloud until `stopping` is set; then raise CancelledError.

    On the way out all that was started is ended, also after a start that failed half-way.
    """
    async with AsyncExitStack() as ends:
        layout = Layout(folder, wires=options.wires)
        ends.callback(layout.close)
        session = await ends.enter_async_context(aiohttp.ClientSession())
        parts = make_parts(layout, options, progress, session)
        await _until(stopping, _start(ends, parts, layout, options, progress))
        progress.ready()
        await _until(stopping, _follow(parts))


async def _until(stopping: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do work to its end; cancel it and raise CancelledError when `stopping` is set."""
    task = asyncio.create_task(work)
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if task.done():
        await task
        return
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    raise asyncio.CancelledError("stopped")


class Part(Protocol):
    """What has to be ended when it has been started."""

    async def start(self) -> None:
        """Start."""

    async def close(self) -> None:
        """End, also after a start that failed half-way."""


async def _begin(ends: AsyncExitStack, part: Part) -> None:
    """Start a part. Its end is registered first: a start may fail or be cancelled half-way."""
    ends.push_async_callback(part.close)
    await part.start()


@asynccontextmanager
async def _in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run work that never ends, until the block is left."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _start(
    ends: AsyncExitStack, parts: Parts, layout: Layout, options: Options, progress: Progress
) -> None:
    """Start everything. The order matters: parts end in reverse, clients before their servers."""
    if reason := parts.account.limit_reason():
        progress.note(reason)
    await _start_servers(ends, parts, layout, progress, deploy=options.deploy)
    ends.push_async_callback(parts.servers.thread.run, parts.pooler.kill)
    ends.push_async_callback(parts.pooler.close)
    await ends.enter_async_context(_in_background(parts.pooler.run()))
    ends.push_async_callback(parts.account.close)
    await _start_front_ends(ends, parts, layout)
    if options.deploy:
        await parts.deployments.deploy()
    if options.console:
        ends.push_async_callback(parts.console.close)
        answer = await parts.console.ask({})
        parts.state.update(console_url=answer["url"])
    parts.state.update(ready=True)


async def _start_servers(
    ends: AsyncExitStack, parts: Parts, layout: Layout, progress: Progress, *, deploy: bool
) -> None:
    """Start what functions connect to; meanwhile synthesise, and prepare the account."""
    servers = parts.servers
    ends.callback(servers.thread.close)
    if servers.faults is not None and layout.secrets_front is not None:
        await _begin(ends, servers.faults.wires)
        runner = web.ServerRunner(web.Server(servers.faults.secrets.handle))
        await _begin(ends, FrontEnd(layout.secrets_front, runner))
    await _begin(ends, servers.balancer)
    async with asyncio.TaskGroup() as group:
        group.create_task(_begin(ends, servers.database))
        group.create_task(servers.pooler_factory.find())
        group.create_task(_find_runtime(layout, progress))
        if deploy:
            group.create_task(parts.deployments.synthesise())
        async with progress.step("control plane: MiniStack"):
            await _begin(ends, servers.control_plane)
        if deploy:
            await parts.deployments.bootstrap()


async def _find_runtime(layout: Layout, progress: Progress) -> None:
    async with progress.step("Lambda's runtime: awslambdaric, boto3"):
        folder = await asyncio.to_thread(installed.runtime_folder)
    layout.runtime.symlink_to(folder)


async def _start_front_ends(ends: AsyncExitStack, parts: Parts, layout: Layout) -> None:
    control = web.AppRunner(control_application(parts, layout.key), access_log=None)
    await _begin(ends, FrontEnd(layout.issuer, web.ServerRunner(issuer_server(parts.issuer))))
    await _begin(ends, parts.apis)
    await _begin(ends, FrontEnd(layout.control, control))


async def _follow(parts: Parts) -> None:
    """Follow changes, and end environments that are idle for too long, for ever."""
    async with asyncio.TaskGroup() as group:
        group.create_task(parts.account.expire())
        group.create_task(parts.follower.run())
