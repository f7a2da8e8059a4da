"""Tells a PgBouncer that hangs from one that is busy.

Both answer late, or not at all: PgBouncer is one thread, and during a storm of logins on a quarter
of a core it comes to the next answer after seconds. But a busy one uses the processor, or waits
for it, and one that hangs does neither (docs/decisions/0019). Only the console is asked, never the
database: a failover must not end a pooler.
"""

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from .session import Session, SessionError

# Seconds between two looks; the caller keeps to them.
LOOK_SECONDS = 1.0
# Looks in a row without an answer and without work after which it hangs.
IDLE_LOOKS = 3
# Looks in a row without an answer after which it hangs, whatever it does. A storm of 800 logins on
# a quarter of a core was measured to keep an answer for 19 s, of 200 on a twentieth for 25 s.
MOST_LOOKS = 120
# Seconds between an answer and the next question.
PAUSE = 0.5
# Seconds after which a question is asked through another session.
ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Usage:
    """What the kernel says of a process: its state (a letter), and its clock ticks so far."""

    state: str
    ticks: int


def usage_of(pid: int) -> Usage | None:
    """Read the usage of a process; None where it has gone, or where there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # Behind the name, which may hold anything: the state is field 3, utime and stime 14 and 15.
    fields = stat.rpartition(")")[2].split()
    return Usage(fields[0], int(fields[11]) + int(fields[12]))


class Verdict:
    """Judges by what each look has seen. Pure: no clock, no I/O.

    Looks are counted, not seconds: where everything stands still together, as when the machine is
    suspended, no look takes place.
    """

    def __init__(self) -> None:
        """Begin with an answer."""
        self._ticks: int | None = None
        self._idle = self._unanswered = 0

    @property
    def answers(self) -> bool:
        """Tell whether PgBouncer answers, or has a reason not to."""
        return not self._idle

    def look(self, answered: bool, usage: Usage | None) -> str:
        """Take what was seen since the last look; return why it hangs, or an empty text."""
        works = usage is None or usage.state == "R" or usage.ticks != self._ticks
        self._ticks = usage.ticks if usage else None
        self._unanswered = 0 if answered else self._unanswered + 1
        self._idle = 0 if answered or works else self._idle + 1
        if self._idle >= IDLE_LOOKS and usage:
            return (
                f"no answer from its console in {self._unanswered} looks, one a second, and no "
                f"processor time used in the last {self._idle} (process state {usage.state})"
            )
        if self._unanswered >= MOST_LOOKS:
            return f"no answer from its console in {self._unanswered} looks, one a second"
        return ""


class Pulse:
    """Asks PgBouncer's console again and again, in a thread, which may wait long."""

    def __init__(self, path: Path, observer: str, pid: int) -> None:
        """Begin to ask through the socket at a path, as the name that may look."""
        self._path = path
        self._observer = observer
        self._pid = pid
        self._answered = threading.Event()
        self._verdict = Verdict()
        threading.Thread(target=self._ask_forever, daemon=True).start()

    @property
    def answers(self) -> bool:
        """Tell whether the last look saw an answer, or work."""
        return self._verdict.answers

    def look(self) -> str:
        """Look once, LOOK_SECONDS after the last time; return why PgBouncer hangs, or nothing."""
        answered = self._answered.is_set()
        self._answered.clear()
        return self._verdict.look(answered, usage_of(self._pid))

    def _ask_forever(self) -> None:
        while True:
            with contextlib.suppress(SessionError):
                self._ask()
            time.sleep(PAUSE)

    def _ask(self) -> None:
        """Ask through one session until that fails.

        One session for many questions: while PgBouncer takes no new connections for lack of
        open files, which it then does for five seconds, it does not hang.
        """
        with Session(
            self._path, self._observer, "pgbouncer", purpose="pulse", seconds=ANSWER_SECONDS
        ) as console:
            while True:
                console.query("SHOW VERSION")
                self._answered.set()
                time.sleep(PAUSE)
                console.extend(ANSWER_SECONDS)
