"""The numbers of PgBouncer's tasks: a cancel request has the number of the task it is for.

A task's number is the last 14 bits (PgBouncer's limit) of its private address: Fargate gives a task
no other stable number.
"""

import ipaddress
import itertools
from collections.abc import Sequence

from lambda_pg_cdk.stage.schema import ConfigurationError

BITS = 14


def subnet_mask(cidr: str) -> int:
    """Return the prefix of all subnets of a VPC: an eighth of it, but at most 4,096 addresses.

    Up to three private subnets, which come first, then lie within 2^14 addresses, so that the
    addresses of two tasks never end in the same number.
    """
    return max(20, int(cidr.partition("/")[2]) + 3)


def check_numbers(stage: str, cidrs: Sequence[str]) -> None:
    """Raise `ConfigurationError` if two tasks in these subnets could have the same number."""
    problems = [
        f"subnets {one} and {other} overlap in the last {BITS} bits of their addresses, so two"
        " tasks of PgBouncer could have the same number; use subnets of one /18"
        for one, other in itertools.combinations(cidrs, 2)
        if _numbers(one) & _numbers(other)
    ]
    problems += [
        f"subnet {cidr} has more addresses than the {2**BITS} numbers of PgBouncer's tasks; use a"
        f" prefix of at least {32 - BITS}"
        for cidr in cidrs
        if ipaddress.ip_network(cidr).num_addresses > 2**BITS
    ]
    if problems:
        raise ConfigurationError(stage, problems)


def _numbers(cidr: str) -> set[int]:
    """Return the possible numbers of a subnet's tasks; AWS keeps the first four and the last."""
    network = ipaddress.ip_network(cidr)
    usable = range(int(network.network_address) + 4, int(network.broadcast_address))
    return {address % 2**BITS for address in usable[: 2**BITS]}
