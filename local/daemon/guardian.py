"""Run the daemon, and end every process that outlives it.

The daemon may crash or be killed, and its children may have forked. The kernel gives such orphans
to this process (Linux); elsewhere they are found by the cloud's id in their environment.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from lambda_pg_cdk.local.processes import open_log
from lambda_pg_cdk.local.state import CLOUD_ID_VARIABLE, end, processes_of

_PR_SET_CHILD_SUBREAPER = 36
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def adopt_orphans() -> None:
    """Become the parent of every process whose own parent ends (Linux only)."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None, use_errno=True)
        if library.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def guard(folder: Path, options: str, parent_pipe: int) -> int:
    """Run the daemon until it ends, then end its remaining processes; return its exit code."""
    adopt_orphans()
    command = [
        sys.executable,
        "-m",
        "lambda_pg_cdk.local.daemon",
        str(folder),
        options,
        str(parent_pipe),
    ]
    with open_log(folder / "cloud.log") as log:
        daemon = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=log,
            pass_fds=[parent_pipe],
            start_new_session=True,
        )
    os.close(parent_pipe)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # only the daemon reports progress

    def forward(_number: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(daemon.pid, signal.SIGTERM)

    for number in _STOP_SIGNALS:
        signal.signal(number, forward)
    code = _reap_until(daemon.pid)
    end_all(os.environ[CLOUD_ID_VARIABLE])
    if code == 0:
        shutil.rmtree(folder, ignore_errors=True)
    return code


def _reap_until(daemon: int) -> int:
    """Collect orphans until the daemon itself ends."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == daemon:
            return os.waitstatus_to_exitcode(status)


def end_all(cloud_id: str) -> None:
    """End every child of this process and every process of the cloud, until none is left."""
    while True:
        left = psutil.Process().children(recursive=True)
        left += [process for process in processes_of(cloud_id) if process not in left]
        end(left)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        if not psutil.Process().children() and not processes_of(cloud_id):
            return


if __name__ == "__main__":
    sys.exit(guard(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
