"""Tasks of the pooler come and go under load: nothing fails, and nothing is in doubt."""

import pytest

from lambda_pg_cdk.local.cloud import LocalCloud
from tests.support.sql_load import KINDS as SQL_KINDS
from tests.support.sql_load import sql_load
from tests.support.statement_load import KINDS, Ledger, ledger


def assert_nothing_was_lost(found: Ledger) -> None:
    """No request failed, no plain write is of unknown outcome, and every kind was served."""
    assert found.failed == {}, found.reasons[:5]
    assert found.unknown == 0, found.reasons[:5]
    assert set(found.served) == set(KINDS)


def test_both_tasks_are_replaced_and_no_request_fails(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a deployment of another task definition does it; three times in a row."""
    with ledger(cloud, monkeypatch) as found:
        found.wait_for_more()
        for _ in range(3):
            before = addresses(cloud)
            cloud.replace_pooler_tasks()
            assert not before & addresses(cloud)
            found.wait_for_more()
    assert_nothing_was_lost(found)


def test_a_task_more_and_one_fewer_fail_no_request(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As autoscaling does it."""
    with ledger(cloud, monkeypatch) as found:
        found.wait_for_more()
        cloud.scale_pooler(3)
        assert len(addresses(cloud)) == 3
        found.wait_for_more()
        cloud.scale_pooler(2)
        assert len(addresses(cloud)) == 2
        found.wait_for_more()
    assert_nothing_was_lost(found)


def test_both_tasks_are_replaced_and_no_request_of_sql_fails(cloud: LocalCloud) -> None:
    """Nor is a write lost or done twice, though no key allows to retry writes."""
    with sql_load(cloud) as seen:
        seen.wait_for_more()
        for _ in range(2):
            before = addresses(cloud)
            cloud.replace_pooler_tasks()
            assert not before & addresses(cloud)
            seen.wait_for_more()
    assert seen.failed == []
    assert set(seen.answered) == set(SQL_KINDS)


def addresses(cloud: LocalCloud) -> set[str]:
    """List the tasks that serve."""
    return {task["address"] for task in cloud.status()["pooler"]["tasks"]}
