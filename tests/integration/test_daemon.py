"""The daemon ends what it has started, however its start ends. In a cloud the guardian helps."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from lambda_pg_cdk.local import cli, state
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.daemon import startup
from lambda_pg_cdk.local.daemon.progress import Progress
from lambda_pg_cdk.local.options import Options
from lambda_pg_cdk.local.paths import another_state_dir
from lambda_pg_cdk.local.state import CLOUD_ID_VARIABLE, StartingError, State

OPTIONS = Options(deploy=False, wires=True)


class StopsAt(Progress):
    """Progress that stops the cloud when a step ends."""

    def __init__(self, step: str, stopping: asyncio.Event) -> None:
        super().__init__(os.open(os.devnull, os.O_WRONLY))
        self.descriptor = self._descriptor
        self._step = step
        self._stopping = stopping

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        """Stop the cloud after the one step."""
        async with super().step(name):
            yield
        if name == self._step:
            self._stopping.set()


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A locked state folder with a short path."""
    monkeypatch.setenv(CLOUD_ID_VARIABLE, "the daemon of a test")
    made = another_state_dir()
    held = state.lock(made)
    yield made
    os.close(held)
    shutil.rmtree(made)


def run(folder: Path, step: str) -> None:
    """Run a cloud in this process; stop it when a step ends."""

    async def story() -> None:
        stopping = asyncio.Event()
        progress = StopsAt(step, stopping)
        try:
            await startup.run(folder, OPTIONS, progress, stopping)
        finally:
            os.close(progress.descriptor)

    asyncio.run(story())


def children() -> set[psutil.Process]:
    """Return the processes that this one has started; those of other tests may end meanwhile."""
    return set(psutil.Process().children(recursive=True))


@pytest.mark.parametrize("step", ["PostgreSQL", "control plane: MiniStack"])
def test_a_stop_during_the_start_ends_all_servers(folder: Path, step: str) -> None:
    """No process is left after a stop, whichever server was the last to start."""
    before = children()
    with pytest.raises(asyncio.CancelledError):
        run(folder, step)
    assert not children() - before


def test_a_start_that_fails_half_way_ends_all_servers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of one server is raised; those that run already, or are starting, end."""
    before = children()
    monkeypatch.setenv("LAMBDA_PG_PGBOUNCER", "docker")
    with pytest.raises(ExceptionGroup) as raised:
        run(folder, "none")
    assert "LAMBDA_PG_PGBOUNCER is 'docker'" in str(raised.value.exceptions[0])
    assert not children() - before


def test_a_cloud_that_is_starting_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its addresses are known before they are served; `status` fails with one sentence."""
    url = "http://127.0.0.1:1"
    State("id", 1, 2, "key", url, url, url, url, "eu-central-1", ready=False).save(folder)
    with pytest.raises(StartingError, match="is still starting"):
        LocalCloud(folder).status()
    monkeypatch.setenv("LAMBDA_PG_STATE_DIR", str(folder))
    assert cli.main(["status"]) == 1
    assert "is still starting: try again in a few seconds" in capsys.readouterr().err
