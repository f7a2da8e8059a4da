"""The face for apps: a stage of cdk.json, its stacks, and the verbs that add functions to it."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aws_cdk import App, Environment, Stack, Tags, Token
from aws_cdk import aws_apigatewayv2 as apigatewayv2
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_lambda as lambda_
from aws_cdk.cx_api import CloudAssembly

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.functions.sql.sql_http.statements import StatementsError, load_statements
from lambda_pg_cdk.layer.build import BuildError, Target
from lambda_pg_cdk.migrations.revisions import MigrationError
from lambda_pg_cdk.stacks.api import ApiStack
from lambda_pg_cdk.stacks.assets import Assets, runtimes
from lambda_pg_cdk.stacks.clients import (
    Attachment,
    Clients,
    attachment_of,
    excess,
    unattachable,
)
from lambda_pg_cdk.stacks.database import DatabaseStack
from lambda_pg_cdk.stacks.http_routes import (
    preflight_problems,
    route_problems,
    same_requests,
    sample_routes,
    scope_problems,
)
from lambda_pg_cdk.stacks.layer import LayerStack
from lambda_pg_cdk.stacks.logins import Login
from lambda_pg_cdk.stacks.network import NetworkStack
from lambda_pg_cdk.stacks.observability import ObservabilityStack
from lambda_pg_cdk.stacks.pooler import new_pooler
from lambda_pg_cdk.stacks.problems import Problems, calling_line
from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stacks.releases import release
from lambda_pg_cdk.stacks.sql import ROUTES as SQL_ROUTES
from lambda_pg_cdk.stacks.sql import SqlFront
from lambda_pg_cdk.stacks.sql_logins import SqlLogins
from lambda_pg_cdk.stage.budget import (
    HEALTH_CONCURRENCY,
    NOTES_CONCURRENCY,
    Budget,
    Cap,
    Client,
    allowance_of,
    budget_of,
)
from lambda_pg_cdk.stage.capacity import UnknownClassError
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.consistency import API_TIMEOUT, alarm_problem
from lambda_pg_cdk.stage.loading import NoProjectError, load, load_stage
from lambda_pg_cdk.stage.messages import problem
from lambda_pg_cdk.stage.schema import ConfigurationError
from lambda_pg_cdk.stage.sources import CONTAINER, FUNCTIONS, folder_problems, target_of

NAME = r"(?=.{1,40}\Z)[a-z][a-z0-9]*([-_][a-z0-9]+)*"
"""A function's name: constructs, alarms and published values contain it."""

TAKEN = frozenset(
    {"api", "certificate", "database", "default", "http", "identity", "migrate", "migration"}
    | {"baseline", "pooler", "rotate", "rotation", "scopes"}
)
"""Names that the stage's own functions, other resources and alarms have."""

LONGEST_TIMEOUT = 900
"""Seconds that Lambda allows a function."""

DEFAULT_HANDLER = "handler.handler"

SQL = "sql"
"""Name and folder of the function that answers `/sql`."""


@dataclass(frozen=True)
class _Stacks:
    """What the verbs add to."""

    api: ApiStack
    watch: ObservabilityStack


class _AnyStage:
    """What all stages have: settings, a budget, and functions that attach to the pooler.

    An error in a call is not raised there: `synth` reports all of them, each with the line of the
    call. Public: `attach`, `budget`, `check`, `config`, `synth`.
    """

    def __init__(
        self,
        app: App,
        read: Callable[[], Config],
        add_up: Callable[[Config, Sequence[Client]], Budget],
    ) -> None:
        self._app = app
        self._problems = Problems(app)
        self._clients: Clients | None = None
        try:
            clients = Clients(read(), add_up)
            self._problems.add(excess(clients.budget))
            self._clients = clients
        except ConfigurationError as error:
            stage = f"stage {error.stage!r} in cdk.json"
            self._problems.add([f"{stage}: {each}" for each in error.problems])
        except (UnknownClassError, NoProjectError) as error:
            self._problems.add([str(error)])

    @property
    def config(self) -> Config:
        """Settings of the stage. Raise `AppError` if they are wrong."""
        return self._counted.config

    @property
    def budget(self) -> Budget:
        """Connections of the stage and of the functions attached so far; raise as `config` does."""
        return self._counted.budget

    def attach(
        self,
        function: lambda_.Function,
        *,
        concurrency: int | Cap | None = None,
        slots: int = 1,
        processes: int = 1,
    ) -> ec2.SecurityGroup | None:
        """Give a function of any stack and any language all that it needs to connect, and count it.

        That is: the environment variables, subnets, a new security group, the secret or
        `rds-db:connect`, and the layer if it is built for the function's Python. Return the group,
        for rules to other targets; None if the pooler is on the internet, or after an error.

        The cap is the function's reserved concurrency. If it has none, `concurrency=20` reserves
        20; `concurrency=Cap.POOLER_LIMIT` reserves nothing, and requests over the pooler's client
        limit are answered 503. `slots` (LAMBDA_PG_SLOTS) and `processes` (of each environment)
        multiply connections; this method sets the variable, so set it nowhere else. An imported
        role must accept policies. The function is deployed after the migration of its stage.
        """
        in_network = self._clients is not None and self._clients.config.in_network
        if self._problems.add(unattachable(function, in_network=in_network)):
            return None
        asked = attachment_of(function, concurrency, slots, processes)
        if self._problems.add(self._attach_problems(asked)) or self._clients is None:
            return None
        return self._clients.attach(function, asked)

    def check(self) -> None:
        """Raise `AppError`, which lists all errors so far, if there are any."""
        self._problems.check()

    def synth(self) -> CloudAssembly:
        """Write the app's templates. Raise `AppError` if there were errors.

        `app.synth()` writes no templates of an app with errors either; the CDK then reports the
        same errors with a traceback.
        """
        self.check()
        return self._app.synth()

    @property
    def _counted(self) -> Clients:
        if self._clients is None:
            raise self._problems.error()
        return self._clients

    def _attach_problems(self, asked: Attachment) -> Iterator[str]:
        return asked.problems() if self._clients is None else self._clients.problems(asked)


class DeployedStage(_AnyStage):
    """A stage that another app deploys; functions of this app attach to it.

    They have to fit into `functions.other_clients`, which the stage keeps for all other apps
    together. Make one of these for each app, and divide the number between the apps.
    """

    def __init__(self, app: App, stage: str) -> None:
        """Read the settings of the stage of that name in cdk.json."""
        super().__init__(app, partial(load_stage, stage), allowance_of)


class Stage(_AnyStage):
    """A stage of cdk.json with its stacks; the context `stage` chooses it (default: dev).

    Public, besides what every stage has: `api`, `authorizer`, `new_function`, `route`,
    `sql_token_api`.
    """

    def __init__(self, app: App) -> None:
        """Add the stage's stacks to the app."""
        super().__init__(app, partial(load, app.node.try_get_context), budget_of)
        self._names: dict[str, str] = {}
        self._routes: dict[str, str] = {}
        self._aliases: dict[str, lambda_.Alias] = {}
        self._stacks: _Stacks | None = None
        self._sql_token_api: apigatewayv2.HttpApi | None = None
        if self._clients is None:
            return
        config = self._clients.config
        if (text := alarm_problem(config)) is not None:
            self._problems.add([text])
        try:
            self._stacks = _build(app, config, self._clients)
        except (BuildError, MigrationError) as error:
            self._problems.add([str(error)])
            return
        self._add_samples(config)
        if config.sql.enabled:
            self._add_sql(self._stacks, config)
        self._stacks.watch.watch_background(self._stacks.api)

    @property
    def api(self) -> apigatewayv2.HttpApi:
        """The HTTP API, for what `route` does not offer. Raise `AppError` if settings are wrong."""
        return self._built.api.api

    @property
    def authorizer(self) -> apigatewayv2.IHttpRouteAuthorizer:
        """The authorizer of the API's routes. Raise `AppError` if settings are wrong."""
        return self._built.api.authorizer

    def new_function(
        self,
        name: str,
        folder: str | Path,
        *,
        concurrency: int | Cap | None = None,
        slots: int = 1,
        timeout: int | None = None,
        runtime: str | None = None,
        handler: str = DEFAULT_HANDLER,
        shared: Sequence[str] = (),
    ) -> lambda_.Function:
        """Add the function of a folder: attached, behind an alias, with alarms and a dashboard.

        `folder` is relative to the folder of cdk.json; a requirements.txt in it is its lock.
        `concurrency` and `slots` are as in `attach`. `timeout` is in seconds; default: the setting
        functions.timeout. `runtime` is Lambda's name of one, as in 'nodejs22.x'; default: the
        stage's Python. 'container' builds the folder's Dockerfile. Other code than Python is
        deployed as it is. `shared` are folders, relative to cdk.json too, that go into a Python
        function's zip under the same path.
        """
        return self._new_function(
            name,
            PROJECT / folder,
            concurrency=concurrency,
            slots=slots,
            timeout=timeout,
            runtime=runtime,
            handler=handler,
            shared=shared,
        )

    def _new_function(  # noqa: PLR0913 - as many as `new_function` has, and the login
        self,
        name: str,
        source: Path,
        *,
        concurrency: int | Cap | None,
        slots: int = 1,
        timeout: int | None = None,
        runtime: str | None = None,
        handler: str = DEFAULT_HANDLER,
        shared: Sequence[str] = (),
        login: Login | None = None,
    ) -> lambda_.Function:
        """Add a function as `new_function` does; `login` is the application's by default."""
        asked = Attachment(
            path=f"{self._stacks.api.node.path}/{name.title()}" if self._stacks else name,
            runtime=runtime or f"python{self._target.python}",
            architecture=self._target.architecture,
            timeout=timeout or self._timeout,
            concurrency=concurrency,
            slots=slots,
        )
        misnamed = list(self._name_problems(name))
        faults = [
            *misnamed,
            *_value_problems(name, timeout, asked.runtime),
            *folder_problems(name, source, asked.runtime, handler, shared),
            *(asked.problems() if misnamed else self._attach_problems(asked)),
        ]
        self._names.setdefault(name, calling_line())
        if self._problems.add(faults) or self._stacks is None:
            return _stand_in()
        try:
            function = self._stacks.api.add_function(
                source, timeout, name=name, runtime=runtime, handler=handler, extra=shared
            )
        except BuildError as error:
            self._problems.add([str(error)])
            return _stand_in()
        self._join(self._stacks, name, function, asked, login)
        return function

    def route(
        self,
        route: str,
        function: lambda_.IFunction,
        *,
        public: bool = False,
        scopes: Sequence[str] = (),
    ) -> None:
        """Route requests to a function, as in `route("GET /orders/{id}", orders)`.

        A request needs a token that the stage's issuer has signed, unless the route is public. With
        `scopes` (at most 10) the token must have one of them; a request without one is answered
        403. The method ANY stands for all that have no route. The function may be in any stack of
        the app.
        """
        faults = [
            *route_problems(route),
            *scope_problems(route, scopes, public=public),
            *self._preflight_problems(route, public=public),
            *_late_problems(function),
        ]
        requests = same_requests(route)
        if requests in self._routes:
            faults.append(f"the route {route!r} matches the requests of {self._routes[requests]}")
        self._routes.setdefault(requests, f"{route!r} at {calling_line()}: route it once")
        if self._problems.add(faults) or self._stacks is None or _is_stand_in(function):
            return
        alias = self._aliases.get(function.node.path)
        self._stacks.api.routes.add(
            route, alias or function, function.node.id, public=public, scopes=scopes
        )
        if self._stacks.api.identity.has_trigger:
            self._stacks.watch.watch_sign_ins()

    @property
    def sql_token_api(self) -> apigatewayv2.HttpApi | None:
        """The HTTP API of `/sql` for callers with a token, if sql.jwt is true."""
        return self._sql_token_api

    @property
    def _built(self) -> _Stacks:
        if self._stacks is None:
            raise self._problems.error()
        return self._stacks

    @property
    def _target(self) -> Target:
        return Target.interpreter() if self._clients is None else target_of(self.config)

    @property
    def _timeout(self) -> int:
        """Seconds of a function's timeout, if the app gives none."""
        return LONGEST_TIMEOUT if self._clients is None else self.config.functions.timeout

    def _add_samples(self, config: Config) -> None:
        """Add the probe of the stage, and the samples if the settings say so."""
        reserved = config.functions.reserved_concurrency
        kept = []
        if config.sample_api:
            cap = reserved or Cap.POOLER_LIMIT
            users = self.new_function("users", FUNCTIONS / "users", concurrency=cap)
            scopes = {"GET": "users:read", "POST": "users:write"}
            self._route_sample("/users", users, scopes)
            scopes = {"GET": "users:read", "PATCH": "users:write"}
            self._route_sample("/users/{id}", users, scopes)
            if config.api.openapi:
                users.add_environment("API_OPENAPI", "1")
                self.route("GET /openapi.json", users, public=True)
                self.route("GET /swagger", users, public=True)
            kept.append(users)
            few = NOTES_CONCURRENCY if reserved else Cap.POOLER_LIMIT
            notes = self.new_function("notes", FUNCTIONS / "notes", concurrency=few)
            self._route_sample("/notes", notes, {"POST": "notes:write"})
            self._route_sample("/notes/{id}", notes, {"GET": "notes:read"})
        probes = HEALTH_CONCURRENCY if reserved else Cap.POOLER_LIMIT
        health = self.new_function("health", FUNCTIONS / "health", concurrency=probes)
        self.route("ANY /health", health, public=True)
        for function in (*kept, health):
            if not _is_stand_in(function):
                # Observability of earlier versions imports it, until it is deployed again.
                Stack.of(function).export_value(function.function_name)

    def _route_sample(
        self, path: str, function: lambda_.IFunction, scopes: Mapping[str, str]
    ) -> None:
        """Route a path of a sample; `scopes` has each of its methods and the method's scope."""
        for route, wanted in sample_routes(self.config, path, scopes):
            self.route(route, function, scopes=wanted)

    def _preflight_problems(self, route: str, *, public: bool) -> Iterator[str]:
        if self._clients is not None and not public:
            yield from preflight_problems(route, self._clients.config.api.origins)

    def _add_sql(self, stacks: _Stacks, config: Config) -> None:
        """Add the function that answers `/sql`, its routes, and what else it needs."""
        sql, found = config.sql, list(_statements_problems(config))
        function = self._new_function(
            SQL,
            FUNCTIONS / SQL,
            concurrency=sql.reserved_concurrency,
            slots=sql.slots,
            timeout=sql.timeout,
            shared=[] if found or sql.statements is None else [sql.statements],
            login=SqlLogins(config),
        )
        if self._problems.add(found) or _is_stand_in(function):
            return
        for route in SQL_ROUTES:
            self._routes[same_requests(route)] = f"{route!r}, which is the stage's own"
        alias = self._aliases[function.node.path]
        front = SqlFront(stacks.api, "SqlFront", config=config, function=function, alias=alias)
        self._sql_token_api = front.token_api
        stacks.watch.watch_sql()

    def _name_problems(self, name: str) -> Iterator[str]:
        if re.fullmatch(NAME, name) is None:
            must = "be up to 40 lower-case letters and digits, with single - or _ between"
            yield problem("the name of a function", name, f"{must}, a letter first")
        elif name in self._names:
            yield problem("the name of a function", name, f"be new: {self._names[name]} has it")
        elif name in TAKEN:
            yield problem("the name of a function", name, "be another one: the stage has it")

    def _join(
        self,
        stacks: _Stacks,
        name: str,
        function: lambda_.Function,
        asked: Attachment,
        login: Login | None,
    ) -> None:
        """Attach a new function, release its versions behind an alias, and watch it."""
        clients = self._counted
        clients.attach(function, asked, login)
        inputs = clients.version_inputs(function, login)
        self._aliases[function.node.path] = release(function, clients.config, inputs)
        published(clients.config, f"functions/{name}").write(stacks.api, function.function_name)
        stacks.watch.watch(name, round(asked.timeout))


def _build(app: App, config: Config, clients: Clients) -> _Stacks:
    """Add the stage's stacks to the app."""
    assets, prefix = Assets(config), config.stack_prefix
    shared: dict[str, Any] = {
        "config": config,
        "env": Environment(account=config.account, region=config.region),
    }
    stateful = {**shared, "termination_protection": config.termination_protection}
    layer = LayerStack(app, f"{prefix}-Layer", assets=assets, **shared)
    network = NetworkStack(app, f"{prefix}-Network", **stateful) if config.in_network else None
    place: dict[str, Any] = {"assets": assets, "network": network}
    database = (
        DatabaseStack(app, f"{prefix}-Database", **place, **stateful)
        if config.database.kind != "none"
        else None
    )
    pooler = new_pooler(app, f"{prefix}-Pooler", database=database, **place, **shared)
    api = ApiStack(app, f"{prefix}-Api", assets=assets, database=database, **shared)
    clients.wait_for(api.migration)
    watch = ObservabilityStack(app, f"{prefix}-Observability", api=api, **shared)
    in_order = filter(None, (layer, network, database, pooler, api, watch))
    for first, second in itertools.pairwise(in_order):
        second.add_stack_dependency(first, reason="reads what it publishes")
    # CloudFormation knows no tags of a target group, though CDK would write them.
    untagged = ["AWS::RDS::DBProxyTargetGroup"]
    Tags.of(app).add("lambda-pg:stage", config.stage, exclude_resource_types=untagged)
    return _Stacks(api, watch)


def _value_problems(name: str, timeout: int | None, runtime: str) -> Iterator[str]:
    if timeout is not None and not 1 <= timeout <= LONGEST_TIMEOUT:
        yield problem(f"the timeout of {name}", timeout, f"be 1 to {LONGEST_TIMEOUT} (seconds)")
    if runtime != CONTAINER and runtime not in runtimes():
        must = f"be Lambda's name of one, as in 'nodejs22.x' or 'python3.13', or {CONTAINER!r}"
        yield problem(f"the runtime of {name}", runtime, must)


def _statements_problems(config: Config) -> Iterator[str]:
    """Yield what is wrong with the file of registered statements: its function would not start."""
    file = config.sql.statements
    if file is None:
        return
    try:
        load_statements(PROJECT / file)
    except StatementsError as error:
        yield f"sql.statements: {error}"
    except OSError:
        must = f"be a file below {PROJECT}, as `make sql-statements` writes it"
        yield problem("sql.statements", file, must)


def _late_problems(function: lambda_.IFunction) -> Iterator[str]:
    """Yield that a function may run for longer than the API waits."""
    resource = function.node.default_child
    if not isinstance(resource, lambda_.CfnFunction) or Token.is_unresolved(resource.timeout):
        return
    if resource.timeout is not None and resource.timeout >= API_TIMEOUT:
        must = f"be less than {API_TIMEOUT} (seconds) for a route: then the API gives up"
        yield problem(f"the timeout of {function.node.path}", resource.timeout, must)


STAND_IN = "StandIn"


def _stand_in() -> lambda_.Function:
    """Return a function that the rest of an app with errors can use; it is in no template."""
    return lambda_.Function(
        Stack(App(), STAND_IN),
        "Function",
        runtime=lambda_.Runtime.PYTHON_3_13,
        handler="index.handler",
        code=lambda_.Code.from_inline("-"),
    )


def _is_stand_in(function: lambda_.IFunction) -> bool:
    return function.node.path.startswith(f"{STAND_IN}/")
