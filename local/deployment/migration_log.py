"""What the migration's log has for the person who deploys."""

import json
from pathlib import Path

_LOG = Path("logs", "migrate.log")


def size(folder: Path) -> int:
    """Return the size of the log of a cloud in a folder, in bytes."""
    log = folder / _LOG
    return log.stat().st_size if log.exists() else 0


def warnings(folder: Path, since: int) -> list[str]:
    """Return the migration's warnings after `since` bytes of its log, each once."""
    log = folder / _LOG
    if not log.exists():
        return []
    found = []
    for line in log.read_bytes()[since:].splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        ours = isinstance(record, dict) and record.get("logger") == "migrate"
        if ours and record.get("level") == "WARNING":
            found.append(str(record.get("message")))
    return list(dict.fromkeys(found))
