"""Attach functions to a stage's pooler, and count their connections."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from aws_cdk import Fn, Stack, Token
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_lambda as lambda_
from constructs import IConstruct

from lambda_pg_cdk.stacks.functions import (
    add_layer,
    add_variables,
    join_network,
    layer_value,
)
from lambda_pg_cdk.stacks.logins import ApplicationLogin, Login
from lambda_pg_cdk.stacks.network import let_in
from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stage.api_environment import api_variables
from lambda_pg_cdk.stage.budget import Budget, BudgetError, Cap, Client, budget_of
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.environment import environment
from lambda_pg_cdk.stage.messages import problem, shown
from lambda_pg_cdk.stage.sources import CONTAINER, targets_of

DEFAULT_TIMEOUT = 3
"""Seconds of a function without a timeout, by Lambda's default."""


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """A function to attach: what it is, and the connections that it may open.

    Numbers may be tokens, which `problems` rejects. `timeout` is in seconds.
    """

    path: str
    runtime: str
    architecture: str
    timeout: float
    reserved: float | None = None
    concurrency: int | Cap | None = None
    slots: int = 1
    processes: int = 1

    @property
    def cap(self) -> int | Cap:
        """Return the concurrency that the function reserves or will reserve."""
        if self.reserved is not None and not isinstance(self.concurrency, int):
            return int(self.reserved)
        return 0 if self.concurrency is None else self.concurrency

    def problems(self) -> Iterator[str]:
        """Yield why the budget cannot count the function."""
        if self.concurrency is None and self.reserved is None:
            yield (
                f"{self.path} has no cap, so it could open any number of connections. Set its"
                " reserved_concurrent_executions, or attach it with concurrency=20 (reserves 20) or"
                " concurrency=Cap.POOLER_LIMIT (no reservation, up to the pooler's client limit)"
            )
        counts = {"reserved_concurrent_executions": self.reserved, "concurrency": self.concurrency}
        for name, number in counts.items():
            if number is not None and not isinstance(number, Cap):
                yield from self._count(name, number, least=0)
        for name, number in (("slots", self.slots), ("processes", self.processes)):
            yield from self._count(name, number, least=1)
        numbers = {self.reserved, self.concurrency} - {None, *Cap}
        if len(numbers) > 1:
            yield (
                f"{self.path} reserves {self.reserved:g}, but was attached with"
                f" concurrency={self.concurrency}: give one of them"
            )

    def _count(self, name: str, number: float, least: int) -> Iterator[str]:
        """Refuse a number that the budget cannot use: a token too, whose value synth cannot see."""
        known = isinstance(number, int | float) and not Token.is_unresolved(number)
        if not known or number != int(number) or number < least:
            value = "a token" if Token.is_unresolved(number) else shown(number)
            yield (
                f"{name} of {self.path} is {value}; must be a whole number of at least"
                f" {least}: the budget needs it at synth"
            )


class Clients:
    """The clients of one stage's pooler.

    In the stage's own app most values come from the settings and the network's stack. The others,
    and all of them in another app, are read at deployment from what the stage publishes. So any
    stack of any app of the account can attach functions. Public: `config`, `budget`, `attach`,
    `problems`, `version_inputs`, `wait_for`.
    """

    def __init__(
        self,
        config: Config,
        add_up: Callable[[Config, Sequence[Client]], Budget] = budget_of,
    ) -> None:
        """Start without functions; `add_up` makes the budget of those that are attached."""
        self.config = config
        self._clients: list[Client] = []
        self._add_up = add_up
        self._migration: IConstruct | None = None

    def wait_for(self, migration: IConstruct) -> None:
        """Deploy what attaches a function after this resource, or after its stack."""
        self._migration = migration

    @property
    def budget(self) -> Budget:
        """Add up the connections of the stage and of the functions attached so far."""
        return self._add_up(self.config, self._clients)

    def problems(self, asked: Attachment) -> Iterator[str]:
        """Yield each reason why a function cannot be attached."""
        if asked.path in {client.name for client in self._clients}:
            yield f"{asked.path} is already attached: attach it once"
            return
        uncounted = list(asked.problems())
        yield from uncounted
        yield from self._late(asked)
        yield from self._without_layer(asked)
        if not uncounted and self.budget.fits:
            yield from excess(self._add_up(self.config, [*self._clients, _client(asked)]))

    def attach(
        self, function: lambda_.Function, asked: Attachment, login: Login | None = None
    ) -> ec2.SecurityGroup | None:
        """Give a function without problems all that it needs to connect, and count it.

        `login` is the application's by default. Return the function's security group; None if the
        pooler is on the internet.
        """
        login = login or ApplicationLogin(self.config)
        resource = cast(lambda_.CfnFunction, function.node.default_child)
        self._clients.append(_client(asked))
        if not isinstance(asked.cap, Cap):
            resource.reserved_concurrent_executions = asked.cap
        self._follow(function)
        add_layer(function, self.config)
        login.allow(function)
        variables = self._environment(function, asked.slots, login.variables(function))
        add_variables(function, {**variables, **api_variables(self.config.api)})
        return self._connect(function) if self.config.in_network else None

    def version_inputs(self, function: lambda_.Function, login: Login | None = None) -> str:
        """Describe the values that a version of the function gets from other stacks.

        CDK publishes a new version when the template of its function changes. Published values do
        not change the template; as the version's description, they do.
        """
        login, words = login or ApplicationLogin(self.config), []
        if (value := layer_value(function, self.config)) is not None:
            layer = Fn.split(":", self._read(function, value))
            words += [Fn.select(6, layer), Fn.select(7, layer)]
        words += login.words(function)
        if self.config.pooler != "external":
            host = Fn.split(".", self._read(function, "pooler/host"))
            words += [Fn.select(0, host), self._read(function, "pooler/port")]
        if self.config.pooler == "pgbouncer":
            first = Fn.select(0, Fn.split("\n", self._read(function, "pooler/ca")))
            words.append(Fn.select(3, Fn.split(" ", first)))
        if self.config.in_network:
            subnets = published(self.config, "network/subnets").read_list(Stack.of(function))
            words.append(Fn.join(",", subnets))
        return Fn.join(" ", words)

    def _late(self, asked: Attachment) -> Iterator[str]:
        checkout = self.config.functions.checkout_timeout
        if not Token.is_unresolved(asked.timeout) and asked.timeout <= checkout:
            must = f"be more than functions.checkout_timeout ({checkout} seconds)"
            yield problem(f"the timeout of {asked.path}", asked.timeout, must)

    def _without_layer(self, asked: Attachment) -> Iterator[str]:
        """Refuse a Python that the layer is not built for: `import lambda_pg` would fail."""
        targets = targets_of(self.config)
        built = [(f"python{target.python}", target.architecture) for target in targets]
        found = (asked.runtime, asked.architecture)
        if asked.runtime.startswith("python") and found not in built:
            layers = " and ".join(f"{runtime} on {processor}" for runtime, processor in built)
            yield (
                f"{asked.path} runs {found[0]} on {found[1]}, but the layer of stage"
                f" {self.config.stage!r} is built for {layers}: change the function, or change"
                " `python` (a list is allowed) and `architecture` of the stage in cdk.json"
            )

    def _follow(self, function: lambda_.Function) -> None:
        """Deploy the function after the migration, and after the stacks that publish values."""
        migration, stack = self._migration, Stack.of(function)
        if migration is None:
            return
        publisher = Stack.of(migration)
        if publisher.node.path == stack.node.path:
            function.node.add_dependency(migration)
        else:
            reason = "reads what it publishes, and waits for its migration"
            stack.add_stack_dependency(publisher, reason=reason)

    def _read(self, function: lambda_.Function, value: str) -> str:
        return published(self.config, value).read(Stack.of(function))

    def _environment(
        self, function: lambda_.Function, slots: int, login: dict[str, Any]
    ) -> dict[str, str]:
        """Write the variables; a published value is read only where the function needs it."""
        config, external = self.config, self.config.external
        common: dict[str, Any] = {
            "application": function.node.id,
            "checkout_timeout": config.functions.checkout_timeout,
            # Always written: the budget has counted them.
            "slots": slots,
            "strict": True,
            **login,
        }
        if config.pooler == "external":
            return environment(**common, profile=external.profile, ca_file=external.ca_file)
        if config.pooler == "pgbouncer":
            common["ca_pem"] = self._read(function, "pooler/ca")
        return environment(
            **common,
            host=self._read(function, "pooler/host"),
            port=self._read(function, "pooler/port"),
            profile=config.pooler,
        )

    def _connect(self, function: lambda_.Function) -> ec2.SecurityGroup:
        group = join_network(function, self.config)
        if self.config.pooler == "external":
            # The host is in the secret's URL, which synth does not read.
            port = self.config.external.port or 0  # never 0 in a VPC: `stage/consistency.py`
            group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(port), "to the pooler")
            return group
        port = self.config.pooler_port
        let_in(group, self._read(function, "pooler/security-group"), port, "the pooler")
        return group


def excess(budget: Budget) -> Iterator[str]:
    """Yield the first limit of a budget that can be exceeded, with the arithmetic."""
    try:
        budget.check()
    except BudgetError as error:
        yield str(error)


def attachment_of(
    function: lambda_.Function, concurrency: int | Cap | None, slots: int, processes: int
) -> Attachment:
    """Describe a function that exists already."""
    resource = cast(lambda_.CfnFunction, function.node.default_child)
    image = resource.package_type == "Image"
    return Attachment(
        path=function.node.path,
        runtime=CONTAINER if image else function.runtime.name,
        architecture=function.architecture.name,
        timeout=resource.timeout or DEFAULT_TIMEOUT,
        reserved=resource.reserved_concurrent_executions,
        concurrency=concurrency,
        slots=slots,
        processes=processes,
    )


def unattachable(function: lambda_.IFunction, *, in_network: bool) -> Iterator[str]:
    """Yield why a construct cannot get what a function needs to connect."""
    if not isinstance(function.node.default_child, lambda_.CfnFunction):
        yield (
            f"{function.node.path} is {type(function).__name__}: attach the function itself;"
            " that includes its versions and aliases"
        )
    elif in_network and function.is_bound_to_vpc:
        yield (
            f"{function.node.path} is already in a VPC: remove vpc, vpc_subnets and"
            " security_groups; attaching it puts it into the stage's VPC"
        )


def _client(asked: Attachment) -> Client:
    return Client(asked.path, asked.cap, asked.slots, asked.processes)
