"""Restore environments of one function, each for one request, as SnapStart does.

benchmarks.cost.first_request starts it as a process with a function's environment, a module and an
event. It imports the handler, runs the hooks for before a snapshot, and forks an environment for
each line of stdin. Each fork prints the processor milliseconds of its first request, from the fork
to the handler's answer.
"""

import gc
import json
import os
import sys
import time
from importlib import import_module

import snapshot_restore_py


class Context:
    """The part of a Lambda context that the layer reads."""

    def __init__(self) -> None:
        """Start the time limit now."""
        self._deadline = time.time() + 25

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until Lambda would end the function."""
        return int((self._deadline - time.time()) * 1000)


def main() -> None:
    """Restore an environment for each line of stdin, one after the other."""
    handler = import_module(sys.argv[1]).handler
    event = json.loads(sys.argv[2])
    for hook, args, kwargs in reversed(snapshot_restore_py.get_before_snapshot()):
        hook(*args, **kwargs)
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    while sys.stdin.readline():
        child = os.fork()
        if child == 0:
            for hook, args, kwargs in snapshot_restore_py.get_after_restore():
                hook(*args, **kwargs)
            answer = handler(event, Context())
            taken = time.process_time_ns()
            if answer["statusCode"] != 200:
                sys.stderr.write(f"{answer}\n")
                os._exit(1)
            print(taken / 1e6, flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
