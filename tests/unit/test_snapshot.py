"""SnapStart: a snapshot holds no connection and no secret."""

import gc
import random
import re
import subprocess
import sys
import weakref
from pathlib import Path

import lambda_pg
import pytest
import snapshot_restore_py
from awslambdaric.lambda_runtime_hooks_runner import run_after_restore, run_before_snapshot
from lambda_pg import Database, Settings
from lambda_pg._credentials import CredentialCache
from lambda_pg._jitter import jitter

SETTINGS = Settings(host="db.example", user="app", password="p")
KIND = "AWS_LAMBDA_INITIALIZATION_TYPE"


class StubPool:
    """A pool that tells when it is closed."""

    def __init__(self, journal: list[str]) -> None:
        """Take the list to write into."""
        self._journal = journal

    def reclaim(self) -> int:
        """Have nothing that is lent."""
        return 0

    def close(self) -> None:
        """Write it down."""
        self._journal.append("pool closed")


class StubCredentials(CredentialCache):
    """Credentials that tell when they are forgotten."""

    journal: list[str]

    def forget(self) -> None:
        """Write it down."""
        super().forget()
        self.journal.append("credentials forgotten")


@pytest.fixture
def snap_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that will be copied, with no hooks of other tests."""
    monkeypatch.setenv(KIND, "snap-start")
    monkeypatch.setattr(snapshot_restore_py, "_before_snapshot_registry", [])
    monkeypatch.setattr(snapshot_restore_py, "_after_restore_registry", [])


def watched(journal: list[str]) -> Database[object]:
    """Make a database whose pool and credentials write down what happens to them."""
    StubCredentials.journal = journal
    database: Database[object] = Database(SETTINGS)
    database._pool = StubPool(journal)  # type: ignore[assignment]
    database._credentials = StubCredentials(SETTINGS)
    journal.clear()
    return database


FORGETTING = ["pool closed", "credentials forgotten"]


def test_a_snapshot_holds_nothing(snap_start: None) -> None:
    """Before the snapshot connections are closed and credentials forgotten, and after it again."""
    journal: list[str] = []
    database = watched(journal)
    database._credentials.get(1)
    run_before_snapshot()
    assert journal == FORGETTING
    assert database._credentials._cached is None
    database._credentials.get(1)
    run_after_restore()
    assert journal == FORGETTING * 2
    assert database._credentials._cached is None


def test_a_handlers_own_hooks_can_use_the_database(snap_start: None) -> None:
    """Hooks before the snapshot run in reverse, those after it in order: ours is the outer one."""
    journal: list[str] = []
    database = watched(journal)
    snapshot_restore_py.register_before_snapshot(journal.append, "handler warms up")
    snapshot_restore_py.register_after_restore(journal.append, "handler reconnects")
    run_before_snapshot()
    assert journal == ["handler warms up", *FORGETTING]
    journal.clear()
    run_after_restore()
    assert journal == [*FORGETTING, "handler reconnects"]
    assert database is not None


def test_the_hooks_keep_no_database_alive(snap_start: None) -> None:
    """A database that nobody uses any more is gone, and its hooks do nothing."""
    journal: list[str] = []
    database = watched(journal)
    gone = weakref.ref(database)
    del database
    gc.collect()
    assert gone() is None
    run_before_snapshot()
    run_after_restore()
    assert journal == []


def test_several_databases_all_forget(snap_start: None) -> None:
    """One for the pooler and one for the database itself, say."""
    journal: list[str] = []
    both = [watched(journal), watched(journal)]
    run_before_snapshot()
    assert journal == FORGETTING * 2
    assert len(both) == 2


@pytest.mark.parametrize("kind", ["on-demand", "provisioned-concurrency", None])
def test_other_environments_have_no_hooks(
    snap_start: None, monkeypatch: pytest.MonkeyPatch, kind: str | None
) -> None:
    """What is not copied forgets nothing."""
    if kind is None:
        monkeypatch.delenv(KIND)
    else:
        monkeypatch.setenv(KIND, kind)
    Database(SETTINGS)
    assert snapshot_restore_py.get_before_snapshot() == []
    assert snapshot_restore_py.get_after_restore() == []


def test_a_runtime_without_hooks_is_no_error(
    snap_start: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11 has no SnapStart, and an image may lack the module."""
    monkeypatch.setitem(sys.modules, "snapshot_restore_py", None)
    assert Database(SETTINGS).stats()["pool_size"] == 0


def test_nothing_is_imported_for_the_hooks_elsewhere() -> None:
    """A cold start without SnapStart does not pay for it."""
    program = (
        "import sys; from lambda_pg import Database, Settings; "
        "Database(Settings(host='db.example', user='u', password='p')); "
        "sys.exit('snapshot_restore_py' in sys.modules)"
    )
    layer = str(Path(lambda_pg.__file__).parents[1])
    subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": layer}, check=True)


def test_chance_differs_between_the_copies_of_a_snapshot() -> None:
    """Jitter comes from the operating system, and no module has another source of chance."""
    sources = Path(lambda_pg.__file__).parent.rglob("*.py")
    imports = re.compile(r"^(import|from) random\b", re.MULTILINE)
    users = {path.name for path in sources if imports.search(path.read_text())}
    assert users == {"_jitter.py"}
    assert type(jitter) is random.SystemRandom
