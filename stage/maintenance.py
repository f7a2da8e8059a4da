"""When RDS maintains a server and backs it up. Pure: no CDK."""

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
HOUR = 60
DAY = 24 * HOUR
"""Minutes."""


def maintenance_window(start: str) -> str:
    """Write the hour that begins at a day and a time (UTC), as RDS writes its weekly window."""
    return f"{start}-{_moved(start, HOUR)}"


def backup_window(start: str) -> str:
    """Write the daily hour before the maintenance window: RDS refuses windows that overlap."""
    return f"{_moved(start, -HOUR)[4:]}-{start[4:]}"


def _moved(start: str, minutes: int) -> str:
    day, hour, minute = start.split(":")
    moment = DAYS.index(day) * DAY + int(hour) * HOUR + int(minute) + minutes
    days, rest = divmod(moment, DAY)
    return f"{DAYS[days % len(DAYS)]}:{rest // HOUR:02}:{rest % HOUR:02}"
