"""When RDS maintains a server and backs it up. Pure: no CDK."""

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
HOUR = 60
DAY = 24 * HOUR
"""Minutes."""


def maintenance_window(start: str) -> str:
    """Return the weekly hour from a day and a time (UTC), in RDS's format."""
    return f"{start}-{_moved(start, HOUR)}"


def backup_window(start: str) -> str:
    """Return the daily hour before the maintenance window: RDS rejects windows that overlap."""
    return f"{_moved(start, -HOUR)[4:]}-{start[4:]}"


def _moved(start: str, minutes: int) -> str:
    day, hour, minute = start.split(":")
    moment = DAYS.index(day) * DAY + int(hour) * HOUR + int(minute) + minutes
    days, rest = divmod(moment, DAY)
    return f"{DAYS[days % len(DAYS)]}:{rest // HOUR:02}:{rest % HOUR:02}"
