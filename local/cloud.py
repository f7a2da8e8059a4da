"""Start, use and stop a local cloud from Python: for the command line, tests and benchmarks."""

import http.client
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote, urlsplit

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local import state
from lambda_pg_cdk.local.deployment import migration_log
from lambda_pg_cdk.local.deployment.cdk import DeploymentError
from lambda_pg_cdk.local.deployment.deployed import Start
from lambda_pg_cdk.local.http.caller import call
from lambda_pg_cdk.local.http_api.issuer import AUDIENCE, Issuer
from lambda_pg_cdk.local.options import Options
from lambda_pg_cdk.local.paths import import_root, state_dir
from lambda_pg_cdk.local.processes import last_lines, open_log
from lambda_pg_cdk.local.state import (
    CLOUD_ID_VARIABLE,
    AlreadyRunningError,
    NotRunningError,
    StartingError,
    State,
    client_keys,
)

__all__ = [
    "AlreadyRunningError",
    "CloudError",
    "CodeError",
    "DeploymentError",
    "LocalCloud",
    "NeedsDeploymentError",
    "NotRunningError",
    "Options",
    "UnhealthyError",
]

_STOP_SECONDS = 120.0  # one second on a quiet machine, far more on a busy one
# For the API's first 200: on a busy machine one cold start may exceed the API's 29 s.
_HEALTH_SECONDS = 60.0
_LOOK_SECONDS = 0.5
Report = Callable[[Mapping[str, Any]], None]


class CloudError(RuntimeError):
    """The local cloud did not start, or refused a request."""


class CodeError(CloudError):
    """New code of a function does not start; the text is its traceback."""


class NeedsDeploymentError(CloudError):
    """A function has no alias, or is not deployed yet: only a deployment gives it new code."""


class UnhealthyError(CloudError):
    """The deployed API does not answer `GET /health` with 200."""


class LocalCloud:
    """One local cloud in a state folder; a context manager that starts and stops it.

    Large because it is the one interface for tests, benchmarks and the console. Nearly every method
    is one request to the control endpoint, and they share only the folder.

    `options.app` deploys another copy of the project, `options.override` is merged into the
    settings of the stage `local`.
    """

    def __init__(
        self,
        folder: Path | None = None,
        options: Options | None = None,
        report: Report = lambda _message: None,
    ) -> None:
        self.folder = folder or state_dir()
        self.options = options or Options(bound=True)
        self._report = report
        self._guardian: subprocess.Popen[bytes] | None = None
        self._parent_pipe = -1

    # Life

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and deploy the app; raise `AlreadyRunningError` or `CloudError`."""
        held = state.lock(self.folder)
        cloud_id = secrets.token_hex(8)
        parent_pipe, self._parent_pipe = os.pipe()
        command = [sys.executable, "-m", "lambda_pg_cdk.local.daemon.guardian", str(self.folder)]
        with open_log(self.folder / "cloud.log") as log:
            self._guardian = subprocess.Popen(
                [*command, self.options.dump(), str(parent_pipe)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=PROJECT,
                env={
                    **os.environ,
                    CLOUD_ID_VARIABLE: cloud_id,
                    "PYTHONPATH": str(import_root(self.folder)),
                },
                pass_fds=[parent_pipe, held],
                start_new_session=True,
            )
        os.close(parent_pipe)
        os.close(held)
        try:
            self._follow()
            self._warn(0)
        except BaseException:
            self.stop()
            raise

    def _follow(self) -> None:
        assert self._guardian is not None  # noqa: S101 - just started
        assert self._guardian.stdout is not None  # noqa: S101 - it is a pipe
        for message in _messages(self._guardian.stdout):
            self._report(message)
            if message.get("ready"):
                return
            if "failed" in message:
                raise CloudError(str(message["failed"]))
        raise CloudError(f"the local cloud has ended:\n{last_lines(self.folder / 'cloud.log')}")

    def stop(self) -> None:
        """Stop everything and remove the folder; do nothing if there is neither."""
        self._let_go()
        if state.is_locked(self.folder):
            self._end_guardian()
        if self._guardian is not None:
            if self._guardian.stdout is not None:
                self._guardian.stdout.close()
            self._guardian.wait(_STOP_SECONDS)
            self._guardian = None
        state.remove(self.folder)

    def _end_guardian(self) -> None:
        guardian = self._guardian.pid if self._guardian else State.load(self.folder).guardian
        with suppress(ProcessLookupError):
            os.kill(guardian, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while state.is_locked(self.folder):
            if time.monotonic() > deadline:
                raise CloudError(
                    f"the local cloud (process {guardian}) did not end in {_STOP_SECONDS:g} s"
                )
            if self._guardian is not None:
                self._guardian.poll()
            time.sleep(0.02)

    def _let_go(self) -> None:
        if self._parent_pipe >= 0:
            os.close(self._parent_pipe)
            self._parent_pipe = -1

    # Use

    @property
    def state(self) -> State:
        """Where everything is. Raises `NotRunningError`."""
        return State.load(self.folder)

    @property
    def url(self) -> str:
        """The deployed API."""
        return self.state.api_url

    @property
    def issuer(self) -> Issuer:
        """The issuer whose tokens the API accepts."""
        return Issuer.load(self.state.issuer_url, self.folder / "issuer.pem")

    def token(
        self,
        subject: str,
        *,
        scope: str | None = None,
        audience: str = AUDIENCE,
        seconds: float = 3600,
        claims: Mapping[str, Any] | None = None,
    ) -> str:
        """Return a bearer token of the local issuer.

        `scope` is a list separated by spaces. The default is all scopes of the deployed routes, so
        that the token is good for each of them; "" is none.
        """
        granted = " ".join(self.scopes) if scope is None else scope
        return self.issuer.token(
            subject, scope=granted, audience=audience, seconds=seconds, claims=claims
        )

    @property
    def scopes(self) -> list[str]:
        """All scopes that routes of the deployed APIs want, sorted."""
        return sorted({scope for api in self.status()["apis"] for scope in api["scopes"]})

    def check_health(self) -> None:
        """Request `/health` until it answers 200; raise `UnhealthyError` after a minute."""
        deadline = time.monotonic() + _HEALTH_SECONDS
        noted = False
        while problem := self._problem():
            if time.monotonic() >= deadline:
                log = self.folder / "logs" / "health.log"
                raise UnhealthyError(
                    f"the API is not healthy: {problem}. The end of the function's log, {log}:\n"
                    f"{last_lines(log, 5)}"
                )
            if not noted:
                note = f"{problem}; retrying for up to {_HEALTH_SECONDS:.0f} s"
                self._report({"note": note})
                noted = True
            time.sleep(_LOOK_SECONDS)

    def _problem(self) -> str | None:
        """Request `/health` once; return the problem, None for a 200."""
        asked = f"GET {self.url}/health"
        try:
            answer = call(self.url, "GET", "/health")
        except (OSError, http.client.HTTPException) as error:
            return f"{asked} got no answer ({error})"
        return None if answer.status == 200 else f"{asked} answered {answer.status} {answer.body}"

    def keep_logs(self, target: Path) -> None:
        """Copy all logs to a folder, which is emptied first; `stop` removes the logs."""
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(mode=0o700, parents=True)
        for log in self.folder.rglob("*.log"):
            if log.is_file():
                copy = target / log.relative_to(self.folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(log, copy)

    def status(self) -> dict[str, Any]:
        """Return the URLs, the servers, and how many environments of each function run."""
        return self._call("GET", "/status")

    def requests(self) -> list[dict[str, Any]]:
        """Return the API's answers of the last minutes, as `History.seconds` does."""
        seconds: list[dict[str, Any]] = self._call("GET", "/requests")["seconds"]
        return seconds

    def environments(
        self, function: str, count: int, start: Start = "restored", *, spread: bool = False
    ) -> list[int]:
        """Open environments until `count` are idle; return the process ids of the new ones.

        Requests go to the environment used last, as on AWS; with `spread`, to the longest idle.
        """
        order = {"count": count, "start": start, "spread": spread}
        pids: list[int] = self._call("POST", f"/functions/{function}/environments", order)["pids"]
        return pids

    def start_on_demand(self, function: str, start: Start) -> None:
        """Set how requests start environments of a function, until `end_environments`."""
        self._call("PUT", f"/functions/{function}/start", {"start": start})

    def end_environments(self, function: str) -> None:
        """End all environments of a function."""
        self._call("DELETE", f"/functions/{function}/environments")

    def invoke(self, function: str, event: Any) -> dict[str, Any]:
        """Run an event: `{"payload": …, "function_error": …}`."""
        return self._call("POST", f"/invoke/{quote(function, safe='')}", event)

    def client(self, service: str) -> Any:
        """Return a boto3 client of a service of the control plane."""
        import boto3  # noqa: PLC0415 - not for `status` and `token`
        from botocore.config import Config  # noqa: PLC0415 - not for `status` and `token`

        state = self.state
        endpoint, region, keys = state.aws_endpoint_url, state.region, client_keys(state.key)
        config = Config(inject_host_prefix=False)  # an IP address cannot have a prefix
        return boto3.client(
            service, endpoint_url=endpoint, region_name=region, config=config, **keys
        )

    def reconcile(self) -> None:
        """Look at the deployed stacks now, and wait until everything runs."""
        self._call("POST", "/reconcile")

    def pooler(self, verb: str) -> None:
        """`start`, `stop` or `restart` the pooler: all its tasks at once."""
        self._call("POST", f"/pooler/{verb}")

    def scale_pooler(self, count: int) -> None:
        """Scale the pooler's ECS service to `count` tasks; return when it is stable."""
        self._update_pooler(desiredCount=count)

    def replace_pooler_tasks(self) -> None:
        """Replace all tasks of the pooler's ECS service; return when it is stable."""
        self._update_pooler(forceNewDeployment=True)

    def _update_pooler(self, **changes: Any) -> None:
        arn = str(self.status()["pooler"]["service"])
        cluster = arn.split("/")[-2]
        self.client("ecs").update_service(cluster=cluster, service=arn, **changes)
        self.reconcile()

    def postgres(self, verb: str, how: str = "fast") -> None:
        """`start`, `stop` or `restart` the database: `smart`, `fast`, or `immediate` as a crash."""
        self._call("POST", f"/postgres/{verb}?how={how}")

    @contextmanager
    def fault(self, wire: str, kind: str) -> Iterator[None]:
        """Keep a fault active until the block is left; for a cloud that was started with wires.

        On the wires `pooler` (functions to pooler) and `database` (pooler to database): `stall`,
        `blackhole`, `reset` (instant), `latency` and `refuse`, as in `local/faults/proxy.py`;
        of `secrets` (Secrets Manager): `failing`, `slow` and `throttling`.
        """
        self._call("POST", f"/wires/{wire}/{kind}")
        try:
            yield
        finally:
            self._call("DELETE", f"/wires/{wire}/{kind}")

    def traffic(self) -> dict[str, int]:
        """Count the connections of each wire, and the faulted calls of Secrets Manager."""
        return self._call("GET", "/wires")

    def processes(self, function: str) -> list[int]:
        """Return the process ids of a function's environments."""
        pids: list[int] = self._call("GET", f"/functions/{function}/environments")["pids"]
        return pids

    def deploy(self, app: Path | None = None, override: Mapping[str, Any] | None = None) -> None:
        """Deploy again; raise `DeploymentError` with the command line's output."""
        order = {"app": str(app) if app else None, "override": override}
        told = migration_log.size(self.folder)
        result: dict[str, Any] = {}
        with self._request("POST", "/deploy", order) as response:
            for message in _messages(response):
                result = message
        self._warn(told)
        if "error" in result or not result:
            raise DeploymentError(str(result.get("error", "the local cloud has ended")))

    def _warn(self, told: int) -> None:
        """Report what the migration warned of since its log had `told` bytes."""
        for warning in migration_log.warnings(self.folder, told):
            self._report({"note": f"migration: {warning}"})

    def update_code(self, function: str, code: Path) -> None:
        """Run new code, the assembled folder of one function; its stack does not change.

        Raise `CodeError` with the traceback if it does not start: then the code before runs on.
        Raise `NeedsDeploymentError` for a function without an alias, and for an unknown one.
        """
        self._update(f"/functions/{quote(function, safe='')}/code", {"code": str(code)})

    def update_layer(self, layer: Path) -> list[str]:
        """Run a new layer, an assembled folder; return the functions that have it.

        Raise `CodeError` with the traceback if one of them does not start with it.
        """
        functions: list[str] = self._update("/layer", {"layer": str(layer)})["functions"]
        return functions

    def _update(self, path: str, order: Mapping[str, str]) -> dict[str, Any]:
        answer = self._call("POST", path, order)
        if "refused" in answer:
            raise CodeError(answer["refused"])
        if "needs_deployment" in answer:
            raise NeedsDeploymentError(answer["needs_deployment"])
        return answer

    @contextmanager
    def _request(self, method: str, path: str, body: Any) -> Iterator[http.client.HTTPResponse]:
        """Call the control endpoint with this cloud's key."""
        state = self.state
        address = urlsplit(state.control_url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=960)
        sent = None if body is None else json.dumps(body).encode()
        with closing(connection):
            try:
                connection.request(method, path, sent, {"Authorization": f"Bearer {state.key}"})
            except ConnectionRefusedError:
                if not state.ready:
                    raise StartingError(self.folder) from None
                raise
            yield connection.getresponse()

    def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        with self._request(method, path, body) as response:
            answer: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            raise CloudError(str(answer.get("error", answer)))
        return answer


def _messages(lines: "IO[bytes] | http.client.HTTPResponse") -> Iterator[dict[str, Any]]:
    for line in lines:
        yield json.loads(line)
