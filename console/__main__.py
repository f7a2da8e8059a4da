"""`python -m console FOLDER`: serve the console of the cloud in a folder.

Its address is the first line on standard output, `{"url": …}`. It ends with its standard input,
so that it never outlives the daemon that has started it.
"""

import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path

from aiohttp import web

from console.server import Server
from local.cloud import LocalCloud


async def serve(folder: Path) -> None:
    """Serve until standard input or a signal says stop; a fault under way is ended first."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    threading.Thread(target=_await_end, args=(loop, stop), daemon=True).start()
    server = Server(LocalCloud(folder))
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(json.dumps({"url": f"http://127.0.0.1:{runner.addresses[0][1]}"}), flush=True)
    watching = asyncio.create_task(server.watch.run())
    await stop.wait()
    watching.cancel()
    await server.actions.close()
    await runner.cleanup()


def _await_end(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
