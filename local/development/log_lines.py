"""Read the lines that functions and the pooler write, and show each in one form. No I/O."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

LEVELS: Final = {
    "CRITICAL": "31;1",
    "FATAL": "31;1",
    "ERROR": "31",
    "WARNING": "33",
    "INFO": "32",
    "DEBUG": "2",
}
"""Levels, and the codes of their colours (ECMA-48)."""

_SOURCES: Final = ("36", "35", "34", "96", "95", "94")
_SHORT: Final = 8  # characters of a request id: enough to tell the requests of a day apart
_SYNONYMS: Final = {"LOG": "INFO", "NOISE": "DEBUG", "WARN": "WARNING"}
_CONTROLS: Final = dict.fromkeys((*range(9), *range(10, 32), 127), "�")
"""Characters that would move the cursor or change the terminal, but not the tab."""
_SHOWN_ELSEWHERE: Final = frozenset(
    {
        *("timestamp", "level", "log_level", "message", "location", "logger", "service"),
        *("requestId", "function_request_id", "function_name", "function_memory_size"),
        *("function_arn", "cold_start", "xray_trace_id", "sampling_rate", "tenantId"),
        *("exception", "exception_name", "stack_trace", "stackTrace"),
        *("errorType", "errorMessage"),
    }
)
_POOLER: Final = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)[.,](?P<milli>\d{3})"
    r"(?: (?P<zone>[A-Z]+) \[\d+\] (?P<level>[A-Z]+)| supervisor:) (?P<text>.*)"
)
_DATED: Final = re.compile(r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S*) (?P<text>.*)")
_TEXT_FORMAT: Final = re.compile(
    r"\[(?P<level>[A-Z]+)\]\s(?P<time>\d{4}-\d\d-\d\dT\S+Z)\s(?P<request>[0-9a-f-]{36})\s(?P<text>.*)"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a log. `time` is None if the line has none, as one by `print`."""

    source: str  # a function's folder, or the pooler
    text: str
    time: datetime | None = None
    level: str = ""
    request: str = ""  # Lambda's request id
    details: tuple[str, ...] = ()  # further lines: of the text, and of a traceback


@dataclass(frozen=True, slots=True)
class DatedEntry:
    """An entry, and its time or that of its neighbour."""

    entry: Entry
    time: datetime

    def concerns(self, request: str) -> bool:
        """Tell whether it belongs to a request or names it; the beginning of an id is enough."""
        lines = (self.entry.text, *self.entry.details)
        return self.entry.request.startswith(request) or any(request in line for line in lines)


def parse(source: str, line: str) -> Entry | None:
    """Read one line of a log; None for an empty one, and for metrics, which are for machines."""
    if not line.strip():
        return None
    if line.startswith("{"):
        try:
            values = json.loads(line)
        except ValueError:
            return Entry(source, line)
        return None if "_aws" in values else _structured(source, values)
    return _plain(source, line)


def _plain(source: str, line: str) -> Entry:
    """Read a line of text: of the pooler, of Lambda's text format, of the local cloud, or any."""
    if found := _POOLER.fullmatch(line):
        moment, level = f"{found['time']}.{found['milli']}", found["level"] or "INFO"
        return Entry(
            source,
            found["text"],
            _moment(f"{moment}+00:00" if found["zone"] == "UTC" else moment),
            _SYNONYMS.get(level, level),
        )
    if found := _TEXT_FORMAT.fullmatch(line):
        text, request = found["text"], found["request"]
        return Entry(source, text, _moment(found["time"]), found["level"], request)
    if found := _DATED.fullmatch(line):
        return Entry(source, found["text"], _moment(found["time"]))
    return Entry(source, line)


def _structured(source: str, found: Mapping[str, Any]) -> Entry:
    """Read what Powertools, Lambda's runtime or a handler has written as JSON."""
    level = str(found.get("level") or found.get("log_level") or "").upper()
    message = found.get("message", "")
    text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
    if error := found.get("errorType"):
        text = f"{text} {error}: {found.get('errorMessage', '')}".strip()
    extra = [
        f"{name}={value if isinstance(value, str | int | float) else json.dumps(value)}"
        for name, value in found.items()
        if name not in _SHOWN_ELSEWHERE and value is not None
    ]
    first, *further = " ".join([text, *extra]).splitlines() or [""]
    return Entry(
        source,
        first,
        _moment(str(found.get("timestamp", ""))),
        _SYNONYMS.get(level, level),
        str(found.get("function_request_id") or found.get("requestId") or ""),
        (*further, *_traceback(found)),
    )


def _traceback(found: Mapping[str, Any]) -> Iterator[str]:
    whole = found.get("exception") or "".join(found.get("stackTrace") or ())
    yield from str(whole).splitlines()


def _moment(text: str) -> datetime | None:
    """Read a time; one without a zone is of this machine's."""
    try:
        return datetime.fromisoformat(text.replace(",", ".")).astimezone()
    except ValueError:
        return None


def dated(entries: Iterable[Entry], written: datetime) -> Iterator[DatedEntry]:
    """Give each entry of one log a time: its own, or that of the entry before, or of the next one.

    `written` is when the log was last written to, for a log without any time.
    """
    listed = list(entries)
    last = next((entry.time for entry in listed if entry.time is not None), written)
    for entry in listed:
        last = entry.time or last
        yield DatedEntry(entry, last)


def show(found: DatedEntry, *, width: int, colour: bool) -> str:
    """Write an entry as one line, and its further lines below; `width` is that of sources."""

    def painted(text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if colour and code and text.strip() else text

    entry = found.entry
    parts = [
        painted(found.time.astimezone().strftime("%H:%M:%S.%f")[:-3], "2"),
        painted(f"{entry.source:{width}}", _SOURCES[sum(entry.source.encode()) % len(_SOURCES)]),
        painted(f"{entry.request[:_SHORT]:{_SHORT}}", "2"),
        painted(f"{entry.level:8}", LEVELS.get(entry.level, "")),
        entry.text.translate(_CONTROLS),
    ]
    details = (f"    {line.translate(_CONTROLS)}" for line in entry.details)
    return "\n".join([" ".join(parts).rstrip(), *details])
