"""The pooler's image: built, and run as ECS runs it, against a real PostgreSQL."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from lambda_pg_cdk import PACKAGE
from lambda_pg_cdk.layer.build import Target
from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.pgbouncer_discovery import PgBouncerBinary
from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.stage.task import RUN_DIR, healthy_command
from lambda_pg_cdk.tools import image as images
from tests.support.image import Image, ImagePooler
from tests.support.servers import SecretsService
from tests.support.waiting import wait_until

pytestmark = pytest.mark.once

LARGEST = 200_000_000
TOOLS = ("buildah", "unshare", "nsenter")


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image, built with buildah, and its root folder."""
    missing = [name for name in TOOLS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is missing - Debian: apt install buildah mmdebstrap")
    if os.geteuid() != 0:
        pytest.skip("only root can enter the image's root and give up every capability")
    images.build(Target.interpreter().architecture, {**os.environ, "CDK_DOCKER": "buildah"})
    container = _buildah("from", images.TAG)
    try:
        root = Path(_buildah("mount", container))
        yield Image.of(root, _buildah("inspect", "--type", "image", images.TAG))
    finally:
        _buildah("rm", container)


def _buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def new_pooler(
    request: pytest.FixtureRequest,
    image: Image,
    postgres: Postgres,
    secrets_service: SecretsService,
) -> Iterator[ImagePooler]:
    """A task of the image that is not started yet."""
    folder = Path(tempfile.mkdtemp(prefix="lpg-", dir="/tmp"))
    folder.chmod(0o711)
    binary = PgBouncerBinary((), "", "image")
    pooler = ImagePooler(binary, folder, processes.free_port(), postgres, secrets_service)
    pooler.image = image
    yield pooler
    pooler.stop()
    for log in folder.glob("*/*.log"):
        request.node.add_report_section("teardown", f"log {log.name}", log.read_text())
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def pooler(new_pooler: ImagePooler) -> ImagePooler:
    """A running task."""
    new_pooler.start()
    return new_pooler


def test_the_image_weighs_at_most_200_mb(image: Image) -> None:
    """Every file counts, once."""
    files = {
        (status.st_dev, status.st_ino): status.st_size
        for path in image.root.rglob("*")
        if (status := path.lstat())
    }
    assert sum(files.values()) <= LARGEST
    assert sum(files.values()) > LARGEST / 10, "this is not the image"


def test_the_image_holds_what_its_locks_name(image: Image) -> None:
    """Each locked package in its version, and nothing that can install another one."""
    status = (image.root / "var/lib/dpkg/status").read_text()
    fields = [line.split(": ", 1) for line in status.splitlines() if ": " in line]
    names = [value for name, value in fields if name == "Package"]
    versions = [value for name, value in fields if name == "Version"]
    installed = {
        f"{name}_{version.partition(':')[2] or version}"
        for name, version in zip(names, versions, strict=True)
    }
    here = images.PLATFORMS[Target.interpreter().architecture]
    lines = [
        line.split()
        for lock in images.LOCKS
        for line in (PACKAGE / "pgbouncer" / lock).read_text().splitlines()
    ]
    files = [Path(line[2]).name for line in lines if line[0] in {here, "all"}]
    assert installed == {name.rpartition("_")[0] for name in files}
    assert not [
        name for name in ("apt", "dpkg", "perl") if (image.root / "usr/bin" / name).exists()
    ]


def test_nothing_in_the_image_gives_a_privilege(image: Image) -> None:
    """No file runs as another account than the caller's."""
    found = [path for path in image.root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in found if path.stat().st_mode & 0o6000] == []


def test_a_client_is_served_by_a_task_without_privileges(pooler: ImagePooler) -> None:
    """Login and query, verified on both hops, as 10001, without one capability, root read-only."""
    with pooler.connect() as connection:
        row = connection.execute(
            "SELECT current_user, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        ).fetchone()
        assert row == (pooler.login.name, True)
        version = connection.info.parameter_status("pgbouncer.version")
    assert version is not None
    assert tuple(map(int, version.split("."))) >= (1, 26, 1)
    task = pooler.task
    assert task.status("Uid").split() == ["10001"] * 4
    assert task.status("Gid").split() == ["10001"] * 4
    assert task.status("Groups") == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(task.status(name), 16) == 0, name
    assert task.shell("echo > /opt/lambda-pg/written") != 0
    assert task.shell("echo > /tmp/written") != 0
    assert task.shell(f"echo > {RUN_DIR}/written") == 0


def test_the_health_check_is_the_image_s(pooler: ImagePooler) -> None:
    """Its shell command works with what the image has, and fails without the supervisor's file."""
    check = healthy_command(RUN_DIR)
    wait_until(lambda: pooler.task.shell(check) == 0, 20, "a healthy task")
    assert pooler.task.shell(healthy_command("/opt")) != 0


def test_a_rotation_reaches_the_task(new_pooler: ImagePooler) -> None:
    """The image's own boto3 reads the new password, and an open client goes on."""
    new_pooler.start(REFRESH_INTERVAL="0.3")
    with new_pooler.connect() as old:
        new_pooler.rotate_password("the-next-password")
        wait_until(lambda: _logs_in(new_pooler), 20, "a login with the new password")
        old.execute("SELECT 1")


def _logs_in(pooler: ImagePooler) -> bool:
    try:
        pooler.connect().close()
    except psycopg.OperationalError:
        return False
    return True


def test_a_task_drains_on_sigterm(pooler: ImagePooler) -> None:
    """An open transaction commits, and the task ends with 0."""
    busy = pooler.connect()
    busy.execute("BEGIN")
    busy.execute("CREATE TEMPORARY TABLE kept (n int) ON COMMIT DROP")
    pooler.task.terminate()
    wait_until(lambda: "got SIGINT" in pooler.log, 20, "the drain")
    busy.execute("INSERT INTO kept VALUES (1)")
    busy.execute("COMMIT")
    assert pooler.task.wait(20) == 0
    busy.close()


def test_the_image_describes_the_services_that_the_supervisor_asks(image: Image) -> None:
    """A service that a module begins to use is missed here first, not on AWS."""
    data = image.root / "usr/lib/python3/dist-packages/botocore/data"
    kept = {path.name for path in data.iterdir() if path.is_dir()}
    sources = "".join(path.read_text() for path in (PACKAGE / "pgbouncer").glob("*.py"))
    assert kept == set(re.findall(r'\.client\(\s*"(\w+)"', sources))
    script = f"import boto3; [boto3.client(name, region_name='eu-west-1') for name in {kept!r}]"
    subprocess.run(["chroot", image.root, "/usr/bin/python3", "-B", "-c", script], check=True)
