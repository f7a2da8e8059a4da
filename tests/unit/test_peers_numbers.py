"""Numbers of PgBouncer's tasks, which come from their addresses."""

import ipaddress

import pytest

from lambda_pg_cdk.stage.peers import check_numbers, subnet_mask
from lambda_pg_cdk.stage.schema import ConfigurationError


@pytest.mark.parametrize("cidr", ["10.0.0.0/16", "10.0.0.0/20", "172.31.128.0/18", "10.9.8.0/24"])
def test_subnets_of_ours_never_share_a_number(cidr: str) -> None:
    """Three private subnets at the beginning of any VPC lie within 2^14 addresses."""
    mask = subnet_mask(cidr)
    subnets = list(ipaddress.IPv4Network(cidr).subnets(new_prefix=mask))[:3]
    check_numbers("dev", [str(subnet) for subnet in subnets])
    numbers = [int(address) % 2**14 for subnet in subnets for address in list(subnet)[4:-1]]
    assert len(numbers) == len(set(numbers))
    assert 0 not in numbers


def test_subnets_that_share_numbers_are_refused() -> None:
    """Both are named; 10.0.0.0/18 and 10.0.64.0/18 end in the same 14 bits."""
    with pytest.raises(ConfigurationError, match=r"10\.0\.0\.0/18 and 10\.0\.64\.0/18"):
        check_numbers("dev", ["10.0.0.0/18", "10.0.64.0/18"])
    with pytest.raises(ConfigurationError, match=r"10\.0\.1\.0/24 and 10\.1\.1\.0/24"):
        check_numbers("dev", ["10.0.1.0/24", "10.1.1.0/24"])


def test_a_subnet_with_too_many_addresses_is_refused() -> None:
    """A /17 has more addresses than there are numbers."""
    with pytest.raises(ConfigurationError, match="more addresses"):
        check_numbers("dev", ["10.0.0.0/17"])
