"""Be a snapshot that is restored twice, and say hello to a server by TLS from each copy.

`python restored_twice.py PORT [renew]`, as process 1 of a process namespace: each copy is process 1
of another one. So nothing tells it that it is a copy, as nothing tells the memory of a virtual
machine. With `renew`, the layer's hooks run as Lambda runs them.
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress

import psycopg
import snapshot_restore_py
from lambda_pg import Database, Settings

CLONE = {"x86_64": 56, "aarch64": 220}
"""The number of the system call."""

NEW_PROCESS_NAMESPACE = 0x20000000


def hello(port: int) -> None:
    """Begin a TLS connection that nobody answers."""
    with suppress(psycopg.OperationalError):
        psycopg.connect(f"host=127.0.0.1 port={port} user=a password=b sslmode=require")


def copy() -> int:
    """Return the process id of a copy, 0 in the copy; nothing of the process hears of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = CLONE[os.uname().machine]
    child = libc.syscall(number, NEW_PROCESS_NAMESPACE | signal.SIGCHLD, 0, 0, 0, 0)
    if child < 0:
        raise OSError(ctypes.get_errno(), "cannot make a process namespace")
    return int(child)


def main() -> None:
    """Copy this process twice."""
    port, renew = int(sys.argv[1]), "renew" in sys.argv
    database = Database(Settings(host="127.0.0.1", port=port, user="a", password="b"))
    hooks = snapshot_restore_py
    for hook, args, kwargs in hooks.get_before_snapshot():
        hook(*args, **kwargs)
    for _ in range(2):
        child = copy()
        if child == 0:
            if renew:
                for hook, args, kwargs in hooks.get_after_restore():
                    hook(*args, **kwargs)
            hello(port)
            os._exit(0)
        os.waitpid(child, 0)
    database.close()


if __name__ == "__main__":
    main()
