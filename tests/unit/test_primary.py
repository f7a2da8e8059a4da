"""When PgBouncer has to reconnect: by what each look has seen, and by nothing else."""

import pytest

from lambda_pg_cdk.pgbouncer.primary import (
    LONG_PAUSE,
    LONGEST_FAILOVER,
    PAUSE,
    QUIET_SECONDS,
    Connection,
    Login,
    Verdict,
    addresses_of,
    connections_of,
)

ROW: dict[str, str | None] = {
    "user": "app", "database": "app", "state": "idle", "addr": "10.0.0.1", "port": "5432",
    "local_port": "40000", "connect_time": "2026-01-01 00:00:00 UTC", "close_needed": "0",
}  # fmt: skip
HERE, THERE = frozenset({"10.0.0.1"}), frozenset({"10.0.1.1"})


def at(address: str, *numbers: int, user: str = "app") -> frozenset[Connection]:
    """Return connections to an address, each with a number."""
    return frozenset(Connection(Login("app", user), address, (str(number),)) for number in numbers)


def test_a_name_that_stays_is_no_reason() -> None:
    """Nor is one that nobody resolves for a while."""
    verdict = Verdict()
    for addresses in (HERE, HERE, frozenset[str](), HERE):
        verdict.resolved(addresses)
        assert not verdict.reason(at("10.0.0.1", 1), 0)


def test_a_connection_to_an_address_that_the_name_has_left_is_a_reason() -> None:
    """Until there are none: PgBouncer may have taken the old address once more."""
    verdict = Verdict()
    verdict.resolved(HERE)
    verdict.resolved(THERE)
    assert verdict.reason(at("10.0.0.1", 1), 0) == (
        "the database is at 10.0.1.1 now, and not at 10.0.0.1"
    )
    assert verdict.reason(at("10.0.0.1", 2), PAUSE)
    assert not verdict.reason(at("10.0.1.1", 3), 100)
    verdict.resolved(HERE)
    assert verdict.reason(at("10.0.1.1", 3), 101)


def test_an_address_that_the_name_never_had_is_no_reason() -> None:
    """PgBouncer has its own resolver, which may know more."""
    verdict = Verdict()
    verdict.resolved(HERE)
    verdict.resolved(THERE)
    assert not verdict.reason(at("10.9.9.9", 1), 0)


def test_a_name_with_one_address_more_is_no_reason() -> None:
    """What was there before is there still."""
    verdict = Verdict()
    verdict.resolved(HERE)
    verdict.resolved(HERE | THERE)
    assert not verdict.reason(at("10.0.0.1", 1) | at("10.0.1.1", 2), 0)


def test_a_name_that_leads_elsewhere_each_time_costs_little() -> None:
    """As a reader endpoint's does: after two minutes the pauses are long."""
    verdict = Verdict()
    both = at("10.0.0.1", 1) | at("10.0.1.1", 2)
    reconnects = []
    for second in range(1000):
        verdict.resolved(THERE if second % 2 else HERE)
        if verdict.reason(both, second):
            reconnects.append(second)
    late = [second for second in reconnects if second > LONGEST_FAILOVER + LONG_PAUSE]
    assert len(late) <= 1000 / LONG_PAUSE
    verdict.resolved(frozenset({"10.0.2.1"}))
    assert verdict.reason(both, reconnects[-1] + 0.1), "one that it never led to is a failover"


def test_reasons_with_a_quiet_time_in_between_are_two_failovers() -> None:
    """The second one does not wait for the first one's pauses."""
    verdict = Verdict()
    verdict.resolved(HERE)
    verdict.resolved(THERE)
    last = max(time for time in range(1000) if verdict.reason(at("10.0.0.1", 1), time))
    verdict.resolved(HERE)
    later = last + QUIET_SECONDS + LONG_PAUSE
    assert not verdict.reason(at("10.0.0.1", 2), later)
    verdict.resolved(THERE)
    assert all(verdict.reason(at("10.0.0.1", 2), later + PAUSE * n) for n in range(10))


def test_only_new_connections_are_asked_for() -> None:
    """A server does not become a standby while it runs: a quiet pooler asks nobody."""
    verdict = Verdict()
    assert verdict.to_ask(frozenset()) == []
    assert verdict.to_ask(at("10.0.0.1", 1)) == [Login("app", "app")]
    verdict.answered(at("10.0.0.1", 1), in_recovery=False)
    assert verdict.to_ask(at("10.0.0.1", 1)) == []
    both = at("10.0.0.1", 1) | at("10.0.0.1", 2, user="app_clone") | at("10.0.0.1", 3, user="more")
    assert verdict.to_ask(both) == [Login("app", "app_clone"), Login("app", "more")]


def test_a_standby_after_a_primary_is_a_reason() -> None:
    """Again and again, and once more when there is a primary again."""
    verdict = Verdict()
    verdict.answered(at("10.0.0.1", 1), in_recovery=False)
    assert not verdict.reason(at("10.0.0.1", 1), 0)
    verdict.answered(at("10.0.0.1", 2), in_recovery=True)
    reconnects = [time for time in range(200) if verdict.reason(at("10.0.0.1", 2), time)]
    assert reconnects == [*range(121), 150, 180]
    assert not verdict.reason(frozenset(), 250), "nothing is there that could be left"
    verdict.answered(at("10.0.0.1", 2, 3), in_recovery=False)
    assert verdict.reason(at("10.0.0.1", 2, 3), 251) == "the database is the primary again"
    verdict.answered(at("10.0.0.1", 4), in_recovery=False)
    assert not verdict.reason(at("10.0.0.1", 4), 300)


def test_a_standby_from_the_beginning_is_meant() -> None:
    """Its promotion does not end them either: its connections take writes from then on."""
    verdict = Verdict()
    verdict.answered(at("10.0.0.1", 1), in_recovery=True)
    assert not verdict.reason(at("10.0.0.1", 1), 0)
    verdict.answered(at("10.0.0.1", 2), in_recovery=False)
    assert not verdict.reason(at("10.0.0.1", 2), 1)


@pytest.mark.parametrize(
    "other",
    [{"database": "pgbouncer"}, {"state": "new"}, {"state": "login"}, {"close_needed": "1"}],
)
def test_what_no_client_can_get_does_not_count(other: dict[str, str | None]) -> None:
    """Only what PgBouncer may still hand out is looked at."""
    identity = ("40000", "2026-01-01 00:00:00 UTC")
    found = Connection(Login("app", "app"), "10.0.0.1", identity)
    assert connections_of(["app"], [ROW]) == {found}
    assert not connections_of(["app"], [ROW | other])


def test_connections_of_both_names_are_looked_at() -> None:
    """One user's connections under two names of the database are two logins."""
    second = ROW | {"database": "app_sql", "user": "reader", "local_port": "40001"}
    found = connections_of(["app", "app_sql"], [ROW, second])
    assert {each.login for each in found} == {Login("app", "app"), Login("app_sql", "reader")}


def test_a_name_is_resolved_or_not() -> None:
    """An address is its own; a name that does not exist says nothing."""
    assert addresses_of("127.0.0.1") == {"127.0.0.1"}
    assert addresses_of("no-such-name.invalid") == frozenset()
