"""The random numbers that keep the environments of a fleet from acting at the same moment."""

import random
from typing import Final

jitter: Final = random.SystemRandom()
"""Has no state that a snapshot or a fork could copy into many environments."""
