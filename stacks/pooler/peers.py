"""Number PgBouncer's tasks: a cancel request is passed on to the task that its number names.

A task takes its number from its private address, as Fargate gives it nothing else that is stable
and its own. PgBouncer has 14 bits for it.
"""

import ipaddress
import itertools
from collections.abc import Sequence

from lambda_pg_cdk.stage.schema import ConfigurationError

BITS = 14


def check_numbers(stage: str, cidrs: Sequence[str]) -> None:
    """Raise `ConfigurationError` where two tasks of these subnets could have the same number."""
    problems = [
        f"subnets {one} and {other}: the last {BITS} bits of their addresses, which number"
        " PgBouncer's tasks, overlap. Give subnets that lie within one /18, or differ there"
        for one, other in itertools.combinations(cidrs, 2)
        if _numbers(one) & _numbers(other)
    ]
    problems += [
        f"subnet {cidr} has more addresses than the {2**BITS} numbers of PgBouncer's tasks"
        for cidr in cidrs
        if ipaddress.ip_network(cidr).num_addresses > 2**BITS
    ]
    if problems:
        raise ConfigurationError(stage, problems)


def _numbers(cidr: str) -> set[int]:
    """List the numbers that a subnet's tasks can have; AWS keeps the first four and the last."""
    network = ipaddress.ip_network(cidr)
    usable = range(int(network.network_address) + 4, int(network.broadcast_address))
    return {address % 2**BITS for address in usable[: 2**BITS]}
