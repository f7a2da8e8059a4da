"""The daemon's process: `python -m lambda_pg_cdk.local.daemon FOLDER OPTIONS PIPE`.

The guardian starts it. PIPE is the descriptor of a pipe whose other end the process that started
the cloud holds.
"""

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.daemon import startup
from lambda_pg_cdk.local.daemon.progress import Progress
from lambda_pg_cdk.local.options import Options
from lambda_pg_cdk.local.state import CLOUD_ID_VARIABLE


async def serve(folder: Path, options: Options, parent_pipe: int) -> int:
    """Run a cloud in `folder` until a signal or its parent ends it; return the exit code."""
    progress, stopping = Progress(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stopping.set)

    def parent_ended() -> None:
        loop.remove_reader(parent_pipe)
        if options.bound or not progress.finished:
            stopping.set()

    loop.add_reader(parent_pipe, parent_ended)
    try:
        with _reported(progress):
            await startup.run(folder, options, progress, stopping)
    except asyncio.CancelledError:
        return 0
    finally:
        loop.remove_reader(parent_pipe)
    return 0


@contextmanager
def _reported(progress: Progress) -> Iterator[None]:
    """Report why a cloud does not start, and raise that error again."""
    try:
        yield
    except Exception as error:
        progress.fail(_first(error))
        raise


def _first(error: Exception) -> Exception:
    """Return the first error of a group of errors, of groups in it, or the error itself."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    processes.raise_open_files_limit()
    os.environ.setdefault(CLOUD_ID_VARIABLE, secrets.token_hex(8))
    sys.exit(uvloop.run(serve(Path(sys.argv[1]), Options.parse(sys.argv[2]), int(sys.argv[3]))))
