"""Run one execution environment: a process that never imports the rest of the project.

It is started as a file, without `site`: it can import the standard library, the function, its
layers and the runtime folder (awslambdaric and boto3, as in AWS's runtime), and nothing of the
developer's virtual environment. Two modes:

    bootstrap.py cold HANDLER        one environment, everything imported from the beginning
    bootstrap.py template HANDLER    imports the handler, then forks an environment per line on
                                     standard input: a restore from a snapshot, as SnapStart does
"""

import gc
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

_NICENESS = 5
"""Below the database, the pooler and the API, which have separate machines on AWS. Not 19:
without autogroup that is a seventieth of another program's share (decision 21).

With autogroup, Linux divides the processor between sessions first: so an environment has a process
group, but not its own session.
"""
_CONNECT_SECONDS = 0.9
"""awslambdaric stops connecting to the Runtime API after one second (aws-lambda-cpp)."""


def run_cold(handler: str) -> None:
    """Serve invocations with awslambdaric, as AWS's bootstrap does."""
    from awslambdaric import lambda_runtime_client  # noqa: PLC0415 - not for templates
    from awslambdaric.__main__ import main  # noqa: PLC0415 - not for templates

    connect_patiently(lambda_runtime_client.runtime_client)
    take_address_with_path(lambda_runtime_client.BaseLambdaRuntimeClient)
    os.nice(_NICENESS)
    main(["bootstrap", handler])


def connect_patiently(native: Any) -> None:
    """Let the first connection to the Runtime API take longer than a second.

    An environment that shares its processor may have to wait that long to run. `native.next` is
    retried until its first answer. It is not retried after a faster failure: the port is closed.
    """
    ask = native.next

    def ask_first() -> Any:
        while True:
            began = time.monotonic()
            try:
                answer = ask()
            except RuntimeError:
                if time.monotonic() - began < _CONNECT_SECONDS:
                    raise
            else:
                native.next = ask
                return answer

    native.next = ask_first


def take_address_with_path(client: Any) -> None:
    """Let the Python part of awslambdaric report errors to an address with a path.

    Its native part accepts one. `client` is the class whose `call_rapid` is wrapped.
    """
    call = client.call_rapid

    def call_rapid(self: Any, method: str, endpoint: str, *rest: Any, **named: Any) -> None:
        whole = self.lambda_runtime_address
        self.lambda_runtime_address, _, path = whole.partition("/")
        try:
            call(self, method, f"/{path}{endpoint}", *rest, **named)
        finally:
            self.lambda_runtime_address = whole

    client.call_rapid = call_rapid


class SnapshotClient:
    """A runtime client whose `restore_next` is the moment between snapshot and restore.

    awslambdaric imports the handler, runs the before-snapshot hooks, calls `restore_next` and then
    runs the after-restore hooks. The template process never leaves that call: it forks there, and
    each child returns from it as a restored environment with its own real client.
    """

    def __init__(self, answers: int) -> None:
        from awslambdaric.lambda_runtime_marshaller import LambdaMarshaller  # noqa: PLC0415 - not for templates

        self.marshaller = LambdaMarshaller()
        self._client: Any = None
        self._answers = answers

    def restore_next(self) -> None:
        """Fork an environment for each order; return in the children only."""
        _refuse_what_a_snapshot_cannot_hold()
        gc.collect()
        gc.freeze()  # the collector would otherwise write to every shared page
        self._answer({"ready": True})
        while line := sys.stdin.buffer.readline():
            order = json.loads(line)
            if "ended" in order:  # the processor time of a child counts only after this
                os.waitpid(order["ended"], 0)
                continue
            try:
                child = os.fork()
            except OSError as error:  # no memory, or too many processes
                self._answer({"no_room": str(error)})
                continue
            if child == 0:
                self._become_environment(order["variables"])
                return
            with suppress(ProcessLookupError, PermissionError):
                os.setpgid(child, child)  # the child does it too: whichever is first
            self._answer({"pid": child})
        os._exit(0)  # the cloud has ended, or retired this template

    def _become_environment(self, variables: dict[str, str]) -> None:
        os.nice(_NICENESS)
        os.setpgid(0, 0)
        # The kernel sends SIGHUP to stopped orphans: frozen environments whose template has ended.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.close(self._answers)
        os.environ.update(variables)
        self._client = _connectable_client()

    def post_init_error(self, error: Any, error_type: str | None = None) -> NoReturn:
        """Report why a snapshot is not possible, and end."""
        self._answer({"error": error, "error_type": error_type})
        sys.exit(1)

    def _answer(self, message: dict[str, Any]) -> None:
        os.write(self._answers, json.dumps(message).encode() + b"\n")

    def __getattr__(self, name: str) -> Any:
        if self._client is None:
            raise AttributeError(f"{name}: the snapshot has not been restored yet")
        return getattr(self._client, name)


def _connectable_client() -> Any:
    """Load the native part of awslambdaric, which `run_template` kept out; make its client."""
    del sys.modules["runtime_client"]
    import runtime_client  # type: ignore[import-not-found]  # noqa: PLC0415 - awslambdaric's C extension
    from awslambdaric import lambda_runtime_client  # noqa: PLC0415 - not for templates
    from awslambdaric.lambda_config import LambdaConfigProvider  # noqa: PLC0415 - not for templates

    runtime_client.initialize_client(lambda_runtime_client._user_agent())
    connect_patiently(runtime_client)
    take_address_with_path(lambda_runtime_client.BaseLambdaRuntimeClient)
    lambda_runtime_client.runtime_client = runtime_client
    config = LambdaConfigProvider(["bootstrap", os.environ["_HANDLER"]])
    return lambda_runtime_client.LambdaRuntimeClient(config.api_address, config.use_thread_polling)


def _refuse_what_a_snapshot_cannot_hold() -> None:
    threads = [thread.name for thread in threading.enumerate()]
    if len(threads) > 1:
        raise RuntimeError(
            f"the import of the handler started threads, which a fork would lose: {threads}"
        )
    if _sockets() - _INHERITED:
        raise RuntimeError(
            "the import of the handler opened a connection, which all environments would share: "
            "connect in the handler, or in an after-restore hook"
        )


def _sockets() -> set[str]:
    """Return the open sockets, if the system lists them."""
    descriptors = Path("/proc/self/fd")
    found = set()
    for link in descriptors.iterdir() if descriptors.is_dir() else ():
        with suppress(FileNotFoundError):  # the descriptor of this listing
            found.add(str(link.readlink()))
    return {name for name in found if name.startswith("socket:")}


_INHERITED = _sockets()  # uvloop uses sockets as the pipes of a child


def run_template(handler: str) -> None:
    """Take a snapshot of the imported handler, then restore environments from it.

    Standard output has the answers to the cloud; the function prints to its log, which is standard
    error.
    """
    # The native part reads its address when it is loaded: it is loaded after the fork.
    sys.modules["runtime_client"] = None  # type: ignore[assignment]
    from awslambdaric import bootstrap  # noqa: PLC0415 - not for templates

    answers = os.dup(1)
    os.dup2(2, 1)
    bootstrap.run(handler, SnapshotClient(answers))


if __name__ == "__main__":
    {"cold": run_cold, "template": run_template}[sys.argv[1]](sys.argv[2])
