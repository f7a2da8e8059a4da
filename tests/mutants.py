"""Layers that are broken on purpose: what a chaos has to find."""

from pathlib import Path

LAYER = Path("layer/python/lambda_pg")

RETRY = (
    "_recovery.py",
    "        window.pause(error, absent=absent)\n",
    "        raise DatabaseUnavailableError('a mutant does not retry') from error\n",
)
LIVENESS = (
    "_pool.py",
    "if connection.idle_since <= now < connection.fresh_until and not connection.poll(0):",
    "if connection.idle_since <= now < connection.fresh_until:",
)
REFRESH = (
    "_login.py",
    "other = self._credentials.after_refusal(credentials, left)",
    "other = None",
)
ONLY_IDEMPOTENT = "            if failure is Failure.LOST and idempotent:\n"
SAYS_DONE = (
    "_database.py",
    ONLY_IDEMPOTENT,
    f"            if failure is Failure.NOT_RUN:\n                return cursor\n{ONLY_IDEMPOTENT}",
)
REPEATS_ALL = (
    "_database.py",
    ONLY_IDEMPOTENT,
    "            if failure is Failure.LOST:\n",
)
MUTANTS = (RETRY, LIVENESS, REFRESH, SAYS_DONE, REPEATS_ALL)


def mutate(project: Path, name: str, part: str, without: str) -> None:
    """Take a part of the layer out of a copy of the project; it has to be there, once."""
    file = project / LAYER / name
    text = file.read_text()
    assert text.count(part) == 1, f"{name} is not what this mutant was made for"
    file.write_text(text.replace(part, without))
