"""How long the import of a module takes: `importing.py psycopg`."""

import sys
import time
from importlib import import_module

started = time.monotonic_ns()
import_module(sys.argv[1])
finished = time.monotonic_ns()

from finish import report  # noqa: E402 - after the measurement

report(finished, None, started)
