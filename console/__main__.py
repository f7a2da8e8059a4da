"""`python -m lambda_pg_cdk.console FOLDER`: serve the console of the cloud in a folder.

It answers each line of its input with its address, `{"url": …}`, and ends with its input, so that
it never outlives the daemon that started it.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from aiohttp import web

from lambda_pg_cdk.console.server import Server
from lambda_pg_cdk.local.cloud import LocalCloud


async def serve(folder: Path) -> None:
    """Serve until the input ends or a signal arrives; end an active fault first."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    server = Server(LocalCloud(folder))
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}{server.path}/"
    print(f"console: {url}", file=sys.stderr, flush=True)  # for a console that was started by hand

    def answer() -> None:
        lines = os.read(sys.stdin.fileno(), 4096)
        for _ in range(lines.count(b"\n")):
            print(json.dumps({"url": url}), flush=True)
        if not lines:
            loop.remove_reader(sys.stdin)
            stop.set()

    loop.add_reader(sys.stdin, answer)
    watching = asyncio.create_task(server.watch.run())
    await stop.wait()
    watching.cancel()
    await server.actions.close()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
