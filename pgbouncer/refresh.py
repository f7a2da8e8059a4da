"""Reads the secrets in a thread: a silent service must not hide that PgBouncer has ended."""

import logging
import math
import threading
import time
from collections.abc import Callable

from .secret_store import SecretStore

# A refused login may mean that a secret has changed: look at once, but not more often than this.
LOOK_GAP = 1.0
# How often to read the certificate's secret, which changes every two months: each read is paid
# for. A client that refuses the certificate, and SIGHUP, make it sooner.
CERTIFICATE_SECONDS = 3600.0

log = logging.getLogger("supervisor")


class Refresh:
    """One look at the secrets at a time, and when the next one is due."""

    def __init__(self, store: SecretStore, interval: float, ended: Callable[[], None]) -> None:
        """Look every `interval` seconds; `ended` is called in the thread after each look."""
        self._store = store
        self._interval = interval
        self._ended = ended
        self.running = False
        """Whether a look is under way."""
        self._again = False  # another look is wanted after it
        self._last = 0.0
        # The next look reads the certificate too; whether the last one did, and has succeeded.
        self._wants_certificate = True
        self._certificate_due = math.inf
        self._fetched = (False, False)

    @property
    def soonest(self) -> float:
        """The time of the next look that LOOK_GAP allows."""
        return self._last + LOOK_GAP

    def want_certificate(self) -> None:
        """Have the next look read the certificate's secret too."""
        self._wants_certificate = True

    def start(self) -> None:
        """Begin a look, in a thread; during a look, have another one follow it."""
        if self.running:
            self._again = True
            return
        self.running = True
        certificate = self._wants_certificate or time.monotonic() >= self._certificate_due
        self._wants_certificate = False
        threading.Thread(target=self._look, args=(certificate,), daemon=True).start()

    def _look(self, certificate: bool) -> None:
        self._fetched = (certificate, False)
        try:
            self._fetched = (certificate, self._store.refresh(certificate=certificate))
        except Exception:  # nothing may end the thread before it has said so
            log.exception("the look at the secrets failed")
        finally:
            self._ended()

    def end(self) -> float:
        """Note that a look has ended; return when the next one is due."""
        self._last = time.monotonic()
        asked, read = self._fetched
        if read:
            self._certificate_due = self._last + CERTIFICATE_SECONDS
        elif asked:
            self._wants_certificate = True
        pause = LOOK_GAP if self._again else self._interval
        self.running = self._again = False
        return self._last + pause
