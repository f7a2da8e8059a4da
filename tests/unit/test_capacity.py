"""How many connections a database accepts by itself: never more than AWS says."""

import pytest

from lambda_pg_cdk.stage.capacity import (
    UnknownClassError,
    connections_of_acus,
    connections_of_class,
)


@pytest.mark.parametrize(
    ("acus", "listed"), [(1, 189), (4, 823), (8, 1669), (16, 3360), (32, 5000)]
)
def test_acus_give_at_most_what_aws_lists(acus: float, listed: int) -> None:
    """AWS's table for Aurora PostgreSQL; the line through it stays below, by little."""
    assert 0.95 * listed <= connections_of_acus(1, acus) <= listed


def test_a_cluster_that_may_pause_is_limited() -> None:
    """With at most 0.5 ACU at the least there are 2000, whatever the largest size is."""
    assert connections_of_acus(0.5, 256) == 2000
    assert connections_of_acus(0, 64) == 2000
    assert connections_of_acus(1, 256) == 5000


def test_a_class_gives_less_than_was_seen_on_it() -> None:
    """187 connections were seen on a t3.small, of which the formula makes 225 of 2 GiB."""
    assert 0.8 * 187 <= connections_of_class("t3.small") <= 187


def test_more_memory_is_never_fewer_connections() -> None:
    """The sizes are in order, and r has twice the memory of m."""
    sizes = ("large", "xlarge", "2xlarge", "4xlarge", "8xlarge")
    found = [connections_of_class(f"m7g.{size}") for size in sizes]
    assert found == sorted(found)
    assert connections_of_class("r7g.large") == connections_of_class("m7g.xlarge")
    assert connections_of_class("r7g.24xlarge") == 5000


@pytest.mark.parametrize("name", ["x2g.large", "m7g.huge", "z1d.large"])
def test_an_unknown_class_is_not_guessed(name: str) -> None:
    """The message says what to set instead."""
    with pytest.raises(UnknownClassError, match=r"set database\.max_connections"):
        connections_of_class(name)
