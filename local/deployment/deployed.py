"""What the stacks have deployed, as frozen values: the local cloud runs exactly this."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

FOLDER_TAG = "lambda-pg:function"

Start = Literal["cold", "restored"]


@dataclass(frozen=True, slots=True)
class Function:
    """One deployed function: its unpacked code and layers, and its configuration.

    Large because Lambda's configuration has these fields.
    """

    name: str
    folder: str  # the tag `lambda-pg:function`, or the function's name where it has none
    arn: str
    handler: str
    runtime: str
    timeout: float  # seconds
    memory: int  # MB
    code: Path
    layers: tuple[Path, ...]
    variables: Mapping[str, str]
    log_group: str
    reserved_concurrency: int | None = None
    version: str = "$LATEST"  # or the number of a published one

    @property
    def fingerprint(self) -> str:
        """The hash of this configuration: if it changes, the old environments retire.

        It leaves out reserved concurrency, which applies to running environments too, and the ARN:
        an alias and the version that it points to share their environments.
        """
        facts = [self.name, self.handler, self.runtime, self.timeout, self.memory, str(self.code)]
        facts.append(self.version)
        content = [*facts, [str(layer) for layer in self.layers], sorted(self.variables.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class JwtAuthorizer:
    """A JWT authorizer of an HTTP API."""

    issuer: str
    audience: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Throttle:
    """The limits of a route: requests a second, and at once. 0 is unlimited."""

    rate: float = 0.0
    burst: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """One route of an HTTP API, with the function behind it."""

    key: str  # "GET /users/{id}", "ANY /health" or "$default"
    function: str  # name or ARN
    payload_format: str
    timeout: float  # seconds
    authorizer: JwtAuthorizer | None = None
    scopes: tuple[str, ...] = ()
    throttle: Throttle = field(default_factory=Throttle)


@dataclass(frozen=True, slots=True)
class Cors:
    """The CORS configuration of an HTTP API."""

    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()
    max_age: int | None = None  # seconds
    credentials: bool = False


@dataclass(frozen=True, slots=True)
class Api:
    """A deployed HTTP API."""

    id: str
    stage: str
    routes: tuple[Route, ...]
    cors: Cors | None = None
    name: str = ""  # its description, where it has one: the CDK calls every API "Http"


@dataclass(frozen=True, slots=True)
class CustomDomain:
    """A custom domain name, and the id of the API that it leads to."""

    name: str
    api: str


@dataclass(frozen=True, slots=True)
class PoolerTask:
    """The pooler's container in the ECS service: its variables and its stop timeout."""

    task_definition: str
    variables: Mapping[str, str]
    stop_timeout: float  # seconds from SIGTERM to SIGKILL

    @property
    def port(self) -> int:
        """The port that every task listens on."""
        return int(self.variables["LISTEN_PORT"])

    @property
    def server_connections(self) -> int:
        """The most server connections of one task, for both names of the database."""
        names = ("MAX_DB_CONNECTIONS", "SQL_MAX_DB_CONNECTIONS")
        return sum(int(self.variables.get(name, 0)) for name in names)

    @property
    def family(self) -> str:
        """The task definition's name, without its revision."""
        return self.task_definition.rpartition("/")[2].partition(":")[0]


@dataclass(frozen=True, slots=True)
class PoolerService:
    """The ECS service that is the pooler, and how it replaces its tasks."""

    arn: str
    deployment: str  # a new one replaces all tasks, also with the same task definition
    task: PoolerTask
    desired: int
    minimum_percent: int = 100
    maximum_percent: int = 200
    deregistration_delay: float = 300.0  # seconds between the last new flow and SIGTERM
    registries: tuple[str, ...] = ()  # services of Cloud Map, by id

    @property
    def cluster(self) -> str:
        """The cluster's name."""
        return self.arn.split("/")[-2]

    @property
    def name(self) -> str:
        """The service's name."""
        return self.arn.split("/")[-1]


@dataclass(frozen=True, slots=True)
class Deployed:
    """Everything that the daemon has to run."""

    functions: tuple[Function, ...] = ()
    apis: tuple[Api, ...] = ()  # the oldest is first
    domains: tuple[CustomDomain, ...] = ()
    pooler: PoolerService | None = None
