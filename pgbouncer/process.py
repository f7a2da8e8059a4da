"""PgBouncer's process: started, signalled, collected; its log is copied."""

import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from os import WNOHANG, kill, waitpid, waitstatus_to_exitcode
from pathlib import Path
from typing import IO

from .metrics import CONTINUED, Tally
from .output import Output

# How long the last lines of an ended PgBouncer may take to be copied, and then to be written.
LOG_SECONDS = 1.0
CONTINUATION = b"..."
# A client's login at PgBouncer, and its own at the server, which may say why in another language.
REFUSED_LOGIN = re.compile(rb"authentication failed|no such user|server login failed")
# Alerts of clients that reject the certificate, as OpenSSL names them.
REFUSED_CERTIFICATE = re.compile(rb"alert (certificate expired|unknown ca|bad certificate)")


class Process:
    """One PgBouncer."""

    def __init__(
        self, command: list[str], log: Output, tally: Tally, notice: Callable[[str], None]
    ) -> None:
        """Keep the command; nothing is started yet.

        `log` takes PgBouncer's lines and `tally` counts them. `notice` is called in a thread, with
        "refused" for a refused login and "distrusted" for a refused certificate.
        """
        self._command = command
        self._log = log
        self._tally = tally
        self._notice = notice
        self._child: subprocess.Popen[bytes] | None = None
        self._copying: threading.Thread | None = None

    def start(self) -> int:
        """Start it; return its process id."""
        self._child = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output = self._child.stdout
        self._copying = threading.Thread(target=self._copy, args=(output,), daemon=True)
        self._copying.start()
        return self._child.pid

    def _copy(self, output: IO[bytes]) -> None:
        """Copy the log, in a thread: PgBouncer must never wait for a reader."""
        for line in output:
            # Marked, as a client may have written it: it must not look like a line of metrics.
            mark = CONTINUATION if line.startswith(CONTINUED) else b""
            self._log.put(mark + line)
            self._tally.note(line)
            if REFUSED_LOGIN.search(line):
                self._notice("refused")
            elif REFUSED_CERTIFICATE.search(line):
                self._notice("distrusted")

    def end_log(self) -> None:
        """Wait for the last lines, which may say why it has ended."""
        if self._copying is not None:
            self._copying.join(LOG_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, while it runs."""
        if self._child is not None and self._child.returncode is None:
            kill(self._child.pid, number)

    def exit_code(self) -> int | None:
        """Collect every ended child, as process 1 must; return PgBouncer's code, once it has one.

        Death by a signal counts as 128 + its number, as in a shell.
        """
        while self._child is not None and self._child.returncode is None:
            try:
                pid, status = waitpid(-1, WNOHANG)
            except ChildProcessError:
                return 1
            if pid == 0:
                return None
            if pid == self._child.pid:
                self._child.returncode = waitstatus_to_exitcode(status)
        code = self._child.returncode if self._child is not None else 0
        return 128 - code if code < 0 else code


def listens(path: Path) -> bool:
    """Tell whether a process listens on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0
