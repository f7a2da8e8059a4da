"""The windows in which RDS works on a server."""

import pytest

from lambda_pg_cdk.stage.maintenance import backup_window, maintenance_window


@pytest.mark.parametrize(
    ("start", "maintenance", "backup"),
    [
        ("sun:03:00", "sun:03:00-sun:04:00", "02:00-03:00"),
        ("sun:23:30", "sun:23:30-mon:00:30", "22:30-23:30"),
        ("mon:00:15", "mon:00:15-mon:01:15", "23:15-00:15"),
    ],
)
def test_the_backup_ends_where_the_maintenance_begins(
    start: str, maintenance: str, backup: str
) -> None:
    """Around midnight and around the week's end, too."""
    assert maintenance_window(start) == maintenance
    assert backup_window(start) == backup
