"""Run the supervisor: `python3 -m pgbouncer`."""

import os
import sys

from .supervisor import main

sys.exit(main(os.environ))
