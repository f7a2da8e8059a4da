"""The pooler's image of the other architecture: built here, and run by an emulator.

The AWS stages run arm64. No kernel support is needed: the emulator starts one program of the image
at a time, so the supervisor is this machine's and only PgBouncer is emulated.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambda_pg_cdk.layer.build import Target
from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary
from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.tools import image as images
from tests.support.servers import PoolerFixture, SecretsService

pytestmark = pytest.mark.once

EMULATORS = {"arm64": "qemu-aarch64-static", "x86_64": "qemu-x86_64-static"}
MACHINES = {"arm64": "aarch64", "x86_64": "x86_64"}
OTHER = next(each for each in EMULATORS if each != Target.interpreter().architecture)
TOOLS = ("podman", "buildah", EMULATORS[OTHER])
PACKAGES = "podman buildah mmdebstrap qemu-user-static"
STARTS = """
import platform, boto3, pgbouncer.supervisor
boto3.client("secretsmanager", region_name="eu-west-1")
print(platform.machine())
"""


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """The image's root folder, which every account may enter."""
    missing = [name for name in TOOLS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is missing - Debian: apt install {PACKAGES}")
    if os.geteuid() != 0:
        pytest.skip("only root can mount the image")
    images.build(OTHER, {**os.environ, "CDK_DOCKER": "podman"})  # test_image.py uses buildah
    container = _buildah("from", images.TAG)
    folder = Path(tempfile.mkdtemp(prefix="lpg-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        mounted = _buildah("mount", container)
        subprocess.run(["cp", "--archive", mounted, str(folder / "root")], check=True)
        yield folder / "root"
    finally:
        _buildah("rm", container)
        shutil.rmtree(folder)


def _buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def emulated(root: Path, program: str) -> tuple[str, ...]:
    """Return the command that starts a program of the image, with the image's libraries."""
    return (EMULATORS[OTHER], "-L", str(root), str(root / program))


def test_pgbouncer_serves_a_client(
    root: Path, postgres: Postgres, secrets_service: SecretsService
) -> None:
    """Login and query, verified on both hops."""
    binary = PgBouncerBinary(emulated(root, "usr/sbin/pgbouncer"), "", "image")
    folder = Path(tempfile.mkdtemp(prefix="lpg-", dir="/tmp"))
    folder.chmod(0o711)
    pooler = PoolerFixture(binary, folder, processes.free_port(), postgres, secrets_service)
    try:
        with pooler.start().connect() as connection:
            row = connection.execute(
                "SELECT current_user, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            ).fetchone()
            version = connection.info.parameter_status("pgbouncer.version")
        assert row == (pooler.login.name, True)
        assert version is not None
        assert tuple(map(int, version.split("."))) >= (1, 26, 1)
    finally:
        pooler.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_the_supervisor_s_imports_are_there(root: Path) -> None:
    """The image's Python imports the supervisor, and boto3 describes the service that it asks."""
    started = subprocess.run(
        [*emulated(root, "usr/bin/python3"), "-B", "-c", STARTS],
        cwd=root / "opt/lambda-pg",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (started.returncode, started.stdout.strip()) == (0, MACHINES[OTHER]), started.stderr
