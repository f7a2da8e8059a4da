"""The control plane by itself, with a daemon that the test plays."""

import json
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.control_plane.ministack import control_plane_variables
from lambda_pg_cdk.local.deployment.direct import Direct
from lambda_pg_cdk.local.deployment.inventory import Inventory
from lambda_pg_cdk.local.install import installed
from lambda_pg_cdk.local.state import client_keys

REGION = "us-east-1"
KEY = "the key of the control plane of the tests"
ACCOUNT = "000000000000"
POSTGRES = {"host": "127.0.0.1", "port": 54321}
SECONDS = 30.0


@dataclass(frozen=True)
class Invocation:
    """What the control plane has a function run with."""

    function: str
    version: str
    event: Any


class Daemon:
    """The daemon's control endpoint: it notes what it is asked, and runs `function`."""

    def __init__(self) -> None:
        """Listen."""
        self.databases: list[dict[str, str]] = []
        self.invocations: list[Invocation] = []
        self.function: Callable[[Invocation], Any] = lambda _: None
        daemon = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = json.dumps(daemon.answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, path: str, body: Any) -> dict[str, Any]:
        """Answer as the daemon would."""
        url = urlsplit(path)
        if url.path == "/database":
            self.databases.append(body)
            return POSTGRES
        name, version = url.path.rpartition("/")[2], parse_qs(url.query)["version"][0]
        invocation = Invocation(name, version, body)
        self.invocations.append(invocation)
        try:
            return {"payload": self.function(invocation), "function_error": None}
        except Exception as error:  # noqa: BLE001 - what a function raises is its answer
            told = {"errorType": type(error).__name__, "errorMessage": str(error)}
            return {"payload": told, "function_error": "Unhandled"}

    def reset(self) -> None:
        """Forget what was asked."""
        self.databases.clear()
        self.invocations.clear()
        self.function = lambda _: None

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class ControlPlane:
    """MiniStack with the project's additions, in a separate process."""

    def __init__(self, folder: Path) -> None:
        """Start it, and wait until it answers."""
        self.daemon = Daemon()
        self._folder = folder
        self._clients: dict[tuple[str, ...], Any] = {}
        ports = port, secrets_port = processes.free_port(), processes.free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.secrets_url = f"http://127.0.0.1:{secrets_port}"
        home = folder / "control-plane"
        variables = control_plane_variables(home, ports, ACCOUNT, REGION, self.daemon.url, KEY)
        self.log = home / "ministack.log"
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(installed.control_plane_python()), "-m", "lambda_pg_cdk.local.control_plane"],
                cwd=PROJECT,
                env=variables,
                stdout=output,
                stderr=output,
            )
        processes.wait_until(self._answers, SECONDS, f"the control plane ({self.log})")

    def _answers(self) -> bool:
        assert self._process.poll() is None, processes.last_lines(self.log)
        try:
            self.client("cloudformation").describe_stacks()
        except Exception:  # noqa: BLE001 - not yet, whatever it says
            return False
        return True

    def client(
        self, service: str, url: str | None = None, region: str = REGION, user_agent: str = ""
    ) -> Any:
        """Return the client of one of its services, at the port of all of them or at `url`."""
        options = (service, url or self.url, region, user_agent)
        if options not in self._clients:
            self._clients[options] = _new_client(*options)
        return self._clients[options]

    def inventory(self) -> Inventory:
        """Return the reader of what is deployed."""
        return Inventory(self.url, REGION, KEY, self._folder / "code")

    def direct(self, layer_parameter: str = "") -> Direct:
        """Return what publishes code beside the stacks."""
        return Direct(self.url, REGION, KEY, layer_parameter)

    def deploy(self, name: str, resources: dict[str, Any], **more: Any) -> dict[str, str]:
        """Create or update a stack; return its outputs."""
        client = self.client("cloudformation")
        body = json.dumps({"Resources": resources, **more})
        try:
            client.describe_stacks(StackName=name)
        except ClientError:
            client.create_stack(StackName=name, TemplateBody=body)
        else:
            client.update_stack(StackName=name, TemplateBody=body)
        stack = self._settled(name)
        assert stack["StackStatus"] in {"CREATE_COMPLETE", "UPDATE_COMPLETE"}, self._events(name)
        outputs = stack.get("Outputs", [])
        return {each["OutputKey"]: each["OutputValue"] for each in outputs}

    def _settled(self, name: str) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while True:
            (stack,) = self.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
            if not stack["StackStatus"].endswith("_IN_PROGRESS"):
                return dict(stack)
            assert time.monotonic() < deadline, stack["StackStatus"]
            time.sleep(0.02)

    def _events(self, name: str) -> list[str]:
        found = self.client("cloudformation").describe_stack_events(StackName=name)
        return [
            f"{each['LogicalResourceId']}: {each['ResourceStatusReason']}"
            for each in found["StackEvents"]
            if each.get("ResourceStatusReason")
        ]

    def delete(self, name: str) -> None:
        """Delete a stack and wait until it is gone."""
        client = self.client("cloudformation")
        client.delete_stack(StackName=name)
        listed = {"CREATE_COMPLETE", "UPDATE_COMPLETE", "DELETE_IN_PROGRESS"}

        def gone() -> bool:
            stacks = client.describe_stacks()["Stacks"]
            return not any(s["StackName"] == name and s["StackStatus"] in listed for s in stacks)

        processes.wait_until(gone, SECONDS, f"the end of stack {name}")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self.daemon.close()


def _new_client(service: str, url: str, region: str, user_agent: str) -> Any:
    config = Config(
        retries={"max_attempts": 0}, inject_host_prefix=False, user_agent_extra=user_agent
    )
    return boto3.client(
        service, endpoint_url=url, region_name=region, config=config, **client_keys(KEY)
    )


def output(value: Any) -> dict[str, Any]:
    """Return an output of a template."""
    return {"Value": value}


def attribute(resource: str, name: str) -> dict[str, Any]:
    """Return a Fn::GetAtt."""
    return {"Fn::GetAtt": [resource, name]}


def function(code: str = "one", **more: Any) -> dict[str, Any]:
    """Return the resource of a function whose code is one line."""
    role = f"arn:aws:iam::{ACCOUNT}:role/any"
    properties = {"Runtime": "python3.13", "Handler": "index.handler", "Role": role}
    return {
        "Type": "AWS::Lambda::Function",
        "Properties": {**properties, "Code": {"ZipFile": f"CODE = {code!r}\n"}, **more},
    }
