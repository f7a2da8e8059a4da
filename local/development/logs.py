"""The logs of a cloud's functions and pooler, as one stream."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lambda_pg_cdk.local.development.log_lines import DatedEntry, dated, parse

LOOK_SECONDS = 0.2


@dataclass
class _Log:
    """One file, read up to a place."""

    path: Path
    source: str
    read: int = 0
    rest: bytes = b""

    def new_entries(self) -> Iterator[DatedEntry]:
        """Read the lines that were written since the last call."""
        with self.path.open("rb") as file:
            written = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
            file.seek(self.read)
            content = self.rest + file.read()
            self.read = file.tell()
        *lines, self.rest = content.split(b"\n")
        found = [parse(self.source, line.decode(errors="replace")) for line in lines]
        yield from dated([entry for entry in found if entry is not None], written)


class Logs:
    """All logs of functions and pooler in a cloud's folder, also of those that come later."""

    def __init__(self, folder: Path) -> None:
        """Take the folder of a running cloud."""
        self._folder = folder
        self._logs: dict[Path, _Log] = {}
        self.width = 0
        """Length of the longest source."""

    def new_entries(self) -> list[DatedEntry]:
        """Return what was written since the last call, in the order of time."""
        for path, source in self._files():
            if path not in self._logs:
                self._logs[path] = _Log(path, source)
                self.width = max(self.width, len(source))
        entries: list[DatedEntry] = []
        for log in self._logs.values():
            try:
                entries += log.new_entries()
            except FileNotFoundError:  # the cloud, or a task of the pooler, has been removed
                continue
        return sorted(entries, key=lambda entry: entry.time)

    def follow(self) -> Iterator[DatedEntry]:
        """Yield all entries, and then new ones until the cloud has ended."""
        while self._folder.exists():
            yield from self.new_entries()
            time.sleep(LOOK_SECONDS)

    def _files(self) -> Iterator[tuple[Path, str]]:
        for path in sorted((self._folder / "logs").glob("*.log")):
            yield path, path.stem
        for path in sorted((self._folder / "pooler").glob("*/pgbouncer.log")):
            yield path, f"pooler {path.parent.name}"
