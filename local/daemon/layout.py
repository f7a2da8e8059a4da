"""Where one cloud is: its folder, its ports and addresses, and its key."""

import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.state import sdk_variables


class Listener:
    """A free port of 127.0.0.1, bound at once and served later: its address is known before."""

    def __init__(self) -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]

    @property
    def url(self) -> str:
        """The address that clients use."""
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Free the port."""
        self.socket.close()


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of the servers.

    `pooler` and `database` are those that clients use; `balancer` and `postgres` are the servers'
    own. They differ only where wires stand between them.
    """

    aws: int
    secrets: int
    postgres: int
    pooler: int
    balancer: int
    database: int

    @classmethod
    def choose(cls, *, wires: bool) -> Self:
        """Choose free ports."""
        aws, secrets_, postgres, pooler, *wired = processes.free_ports(6)
        balancer, database = wired if wires else (pooler, postgres)
        return cls(aws, secrets_, postgres, pooler, balancer, database)


class Layout:
    """All addresses of a cloud, known before anything is started."""

    def __init__(self, folder: Path, *, wires: bool) -> None:
        """Bind the ports of the front ends; with `wires`, one for the front of Secrets Manager."""
        self.folder = folder
        self.key = secrets.token_hex(32)
        self.ports = Ports.choose(wires=wires)
        self.api = Listener()
        self.issuer = Listener()
        self.control = Listener()
        self.secrets_front = Listener() if wires else None

    @property
    def endpoint(self) -> str:
        """The control plane."""
        return f"http://127.0.0.1:{self.ports.aws}"

    @property
    def runtime(self) -> Path:
        """The link to the folder of Lambda's runtime."""
        return self.folder / "runtime"

    def sdk_variables(self, region: str) -> dict[str, str]:
        """Return what points the AWS SDK of functions and pooler to the control plane.

        With wires it goes through the front that can fail; without, straight to the fast port of
        Secrets Manager.
        """
        if self.secrets_front is not None:
            return sdk_variables(self.secrets_front.url, region, self.key)
        secrets_endpoint = f"http://127.0.0.1:{self.ports.secrets}"
        return {
            **sdk_variables(self.endpoint, region, self.key),
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": secrets_endpoint,
        }

    def make_folder(self, name: str) -> Path:
        """Create a folder of the cloud that only its owner may enter."""
        made = self.folder / name
        made.mkdir(mode=0o700)
        return made

    def close(self) -> None:
        """Free the ports of the front ends."""
        for listener in (self.api, self.issuer, self.control, self.secrets_front):
            if listener is not None:
                listener.close()
