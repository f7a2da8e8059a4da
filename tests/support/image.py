"""The pooler's image as a task: its root, read-only, as its account, without capabilities."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from psycopg.conninfo import make_conninfo

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary
from lambda_pg_cdk.local.paths import shareable
from lambda_pg_cdk.local.servers.pgbouncer import Pooler
from tests.support.servers import PoolerFixture

RUN_DIR = "/run/pgbouncer"
# Started as root; what it starts has no privilege and sees nothing but the image, /proc and /dev.
ENTER = f"""
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"
mount --bind "$2" "$1{RUN_DIR}"
mount --rbind /dev "$1/dev" && mount -t proc proc "$1/proc"
exec "$3" -m tests.support.image "$1"
"""
# From <linux/prctl.h>.
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG = 24, 38, 1


@dataclass(frozen=True)
class Image:
    """An image's root folder, and how the image wants to be started."""

    root: Path
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str
    account: tuple[int, int]

    @classmethod
    def of(cls, root: Path, inspected: str) -> Image:
        """Read what `buildah inspect --type image` says."""
        config = json.loads(inspected)["OCIv1"]["config"]
        user, group = map(int, config["User"].split(":"))
        variables = dict(line.split("=", 1) for line in config["Env"])
        command = (*config["Entrypoint"], *config.get("Cmd", ()))
        return cls(root, command, variables, config["WorkingDir"], (user, group))


class ImageTask(Pooler):
    """One task."""

    def __init__(self, image: Image, folder: Path, environment: Mapping[str, str]) -> None:
        """Name the places; the environment is a task definition's, and nothing is added to it."""
        super().__init__(PgBouncerBinary((), "", "image"), folder, environment)
        self._image = image
        self._environment = {**image.environment, **environment}

    @property
    def admin_dsn(self) -> str:
        """The address of the console, seen from outside."""
        inside = (self.run_dir / "admin_dsn").read_text()
        return make_conninfo(inside, host=str(self.run_dir))

    def launch(self) -> None:
        """Start the image's command and return at once."""
        account = processes.Account("pooler", *self._image.account)
        processes.make_private_folder(self.run_dir, account)
        namespace = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", ENTER, "sh"]
        self._process = processes.start(
            [*namespace, str(self._image.root), str(self.run_dir), sys.executable],
            log=shareable(self.folder) / self.log.name,
            environment={
                "PATH": os.environ["PATH"],
                "COMMAND": shlex.join(self._image.command),
                "FOLDER": self._image.folder,
                "ACCOUNT": "{} {}".format(*self._image.account),
                "ENVIRONMENT": json.dumps(self._environment),
            },
            folder=PROJECT,
        )

    def kill(self) -> None:
        """End the supervisor and its PgBouncer: a container's end would, and here there is none."""
        children = psutil.Process(self.pid).children(recursive=True) if self.running else []
        super().kill()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()

    def shell(self, command: str) -> int:
        """Run a command of the task's shell, as ECS runs a health check; return its exit code."""
        pid = str(self.pid)
        user, group = self._image.account
        enter = ["nsenter", "--target", pid, "--mount", f"--root=/proc/{pid}/root"]
        done = subprocess.run(
            [*enter, f"--setuid={user}", f"--setgid={group}", "/bin/sh", "-c", command],
            env=dict(self._image.environment),
            check=False,
        )
        return done.returncode

    def status(self, name: str) -> str:
        """Read a line of what the kernel says of the task's first process."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{name}:"))


class ImagePooler(PoolerFixture):
    """A pooler whose supervisor and PgBouncer are the image's."""

    image: Image

    def prepare(self, **changes: str) -> ImageTask:
        """Make the task, with changes to the environment, without starting it."""
        # The authority of the test's database lies in the one folder that the task sees.
        self.folder.mkdir(parents=True, exist_ok=True)
        task = ImageTask(self.image, self.folder, self.environment | changes)
        task.run_dir.mkdir(exist_ok=True)
        (task.run_dir / "ca.pem").write_text(self.postgres.ca_file.read_text())
        task._environment["SERVER_TLS_CA_FILE"] = f"{RUN_DIR}/ca.pem"
        task._environment["LISTEN_ADDR"] = "127.0.0.1"
        self._process = task
        return task

    @property
    def task(self) -> ImageTask:
        """The running task."""
        assert isinstance(self._process, ImageTask)
        return self._process


def enter(root: str) -> None:
    """Become the task: give up every privilege, and start the image's command in its root."""
    import ctypes  # noqa: PLC0415 - only this short-lived process needs it

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    variables = json.loads(os.environ["ENVIRONMENT"])
    command, folder = shlex.split(os.environ["COMMAND"]), os.environ["FOLDER"]
    user, group = map(int, os.environ["ACCOUNT"].split())
    os.chroot(root)
    os.chdir(folder)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in range(last + 1):
        prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.execvpe(command[0], command, variables)  # noqa: S606 - as a container's runtime does


if __name__ == "__main__":
    enter(sys.argv[1])
