"""Layers that are broken on purpose: what a chaos has to find."""

from pathlib import Path

LAYER = Path("layer/python/lambda_pg")

RETRY = (
    "_retry.py",
    "        self._open_window().pause(error, absent=absent)\n",
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
FAILED = "                attempts.failed(error, connection, alone=alone, idempotent=idempotent)\n"
SAYS_DONE = (
    "_database.py",
    FAILED,
    f"""{FAILED}                if attempts._failed.failure.name == 'NOT_RUN':
                    self._pool.give_back(connection)
                    return Rows(connection, row_factory=self._row_factory)
""",
)
REPEATS_ALL = (
    "_retry.py",
    "            case Failure.LOST if failed.repeatable:\n",
    "            case Failure.LOST:\n",
)
MUTANTS = (RETRY, LIVENESS, REFRESH, SAYS_DONE, REPEATS_ALL)


def mutate(project: Path, name: str, part: str, without: str) -> None:
    """Take a part of the layer out of a copy of the project; it has to be there, once."""
    file = project / LAYER / name
    text = file.read_text()
    assert text.count(part) == 1, f"{name} is not what this mutant was made for"
    file.write_text(text.replace(part, without))
