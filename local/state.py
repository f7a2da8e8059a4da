"""The state of one running local cloud, in its folder, for other processes."""

import fcntl
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

CLOUD_ID_VARIABLE = "LAMBDA_PG_CLOUD"  # in the environment of every process of a cloud
STATE_FILE = "state.json"
_LOCK_FILE = "lock"
_PATIENCE_SECONDS = 5.0


class NotRunningError(LookupError):
    """No local cloud is running in this state folder."""


class StartingError(NotRunningError):
    """The local cloud in this state folder does not answer yet."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"the local cloud in {folder} is still starting: try again in a few seconds"
        )


class AlreadyRunningError(RuntimeError):
    """A local cloud is running in this state folder."""


@dataclass(frozen=True, slots=True)
class State:
    """Where a running cloud is: its processes, its addresses and its key."""

    cloud_id: str
    guardian: int  # process id
    daemon: int
    key: str = field(repr=False)  # that requests to the control plane are signed with
    control_url: str
    api_url: str
    issuer_url: str
    aws_endpoint_url: str
    region: str
    ready: bool
    console_url: str | None = None

    def save(self, folder: Path) -> None:
        """Write the state file, readable by this account only, in one step."""
        text = json.dumps(asdict(self), indent=2)
        partial = folder / f"{STATE_FILE}.partial"
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        partial.replace(folder / STATE_FILE)

    @classmethod
    def load(cls, folder: Path) -> "State":
        """Read the state of a running cloud; raise `NotRunningError`."""
        if not is_locked(folder):
            raise NotRunningError(f"no local cloud is running in {folder}: `make up` starts one")
        try:
            return cls(**json.loads((folder / STATE_FILE).read_text()))
        except FileNotFoundError:
            raise StartingError(folder) from None


class StateFile:
    """The state of a cloud that is starting or running; each change is written at once."""

    def __init__(self, folder: Path, state: State) -> None:
        """Write the first state."""
        self._folder = folder
        self.state = state
        state.save(folder)

    def update(self, **changes: Any) -> None:
        """Change fields of the state."""
        self.state = replace(self.state, **changes)
        self.state.save(self._folder)


def credentials(key: str) -> dict[str, str]:
    """Return the variables from which AWS SDKs read a cloud's key; the other two are fixed."""
    return {
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": key,
        "AWS_SESSION_TOKEN": "local",
    }


def client_keys(key: str) -> dict[str, str]:
    """Return the arguments by which boto3 takes a cloud's key."""
    return {name.lower(): value for name, value in credentials(key).items()}


def sdk_variables(endpoint: str, region: str, key: str) -> dict[str, str]:
    """Return the environment variables that point an AWS SDK to a control plane."""
    return {
        **credentials(key),
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_ENDPOINT_URL": endpoint,
        # Cloud Map's DiscoverInstances goes to `data-…`, which no address can have in front.
        "AWS_DISABLE_HOST_PREFIX_INJECTION": "true",
    }


def lock(folder: Path) -> int:
    """Lock the folder for a cloud; return the descriptor that holds the lock while it is open.

    What a dead cloud has left there is removed first. Raises `AlreadyRunningError`, or
    PermissionError for a folder of another account, which could read and change what is in it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _close_to_others(folder)
    descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AlreadyRunningError(
            f"a local cloud is running in {folder}: `make status` shows it, `make down` stops it"
        ) from None
    _clean(folder)
    return descriptor


def _close_to_others(folder: Path) -> None:
    """Close a folder to other accounts; as root, let the servers' account pass through it."""
    for owner in {folder.stat().st_uid, folder.lstat().st_uid} - {os.geteuid()}:
        raise PermissionError(
            f"{folder} belongs to another account (uid {owner}), which could read the keys of a "
            "local cloud in it. Remove it, or choose another folder with LAMBDA_PG_STATE_DIR."
        )
    folder.chmod(0o700 if os.geteuid() else 0o711)


def is_locked(folder: Path) -> bool:
    """Tell whether a cloud holds the folder."""
    try:
        descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _clean(folder: Path) -> None:
    """End the processes and remove the files of a cloud that is dead; keep the lock."""
    with suppress(FileNotFoundError, json.JSONDecodeError):
        left: dict[str, Any] = json.loads((folder / STATE_FILE).read_text())
        end(processes_of(str(left.get("cloud_id", ""))))
    for path in folder.iterdir():
        if path.name == _LOCK_FILE:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove the folder of a cloud that has ended, and end its remaining processes."""
    if not folder.exists():
        return
    descriptor = lock(folder)
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def processes_of(cloud_id: str) -> list[psutil.Process]:
    """Return the processes that have a cloud's id in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            ours = process.environ().get(CLOUD_ID_VARIABLE) == cloud_id
            if cloud_id and ours and process.pid != os.getpid():
                found.append(process)
    return found


def end(processes: list[psutil.Process], patience: float = _PATIENCE_SECONDS) -> None:
    """End processes: SIGTERM first, since PostgreSQL would leave shared memory behind."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
            process.resume()  # a frozen environment does not receive the signal
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and any(map(_alive, processes)):
        time.sleep(0.02)
    for process in processes:
        with suppress(psutil.Error):
            if _alive(process):
                process.kill()


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
