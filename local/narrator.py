"""Print the progress of a cloud that starts."""

import time
from collections.abc import Mapping
from typing import Any


class Narrator:
    """Prints each step, and how long it took."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, message: Mapping[str, Any]) -> None:
        elapsed = time.monotonic() - self._began
        if "begin" in message:
            print(f"  {elapsed:5.1f} s  … {message['begin']}", flush=True)
        elif "end" in message:
            taken = f"({message['seconds']:.1f} s)"
            print(f"  {elapsed:5.1f} s  ✓ {message['end']} {taken}", flush=True)
        elif "note" in message:
            self.note(message["note"])

    def note(self, text: str) -> None:
        """Print one line with the time."""
        print(f"  {time.monotonic() - self._began:5.1f} s    {text}", flush=True)
