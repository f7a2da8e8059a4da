"""The pooler's image and local mode run the same files."""

import inspect
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lambda_pg_cdk.local.servers.pgbouncer import Pooler
from lambda_pg_cdk.pgbouncer.settings import Settings
from lambda_pg_cdk.tools import image

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "pgbouncer" / "Dockerfile").read_text()
SCRIPT = (ROOT / "pgbouncer" / "packages.sh").read_text()
ROOTS_OF_RDS = "layer/python/lambda_pg/certs/aws.pem"


def copies() -> dict[Path, str]:
    """List what the Dockerfile copies of the repository: file → folder of the build stage."""
    lines = re.findall(r"^COPY (?!--from)(.+) (\S+)$", DOCKERFILE, re.MULTILINE)
    return {
        file: target
        for patterns, target in lines
        for pattern in patterns.split()
        for file in ROOT.glob(pattern)
    }


def tree() -> dict[Path, str]:
    """List what the image has of the repository: file → folder of the image."""
    return {
        file: target.removeprefix("/image")
        for file, target in copies().items()
        if target.startswith("/image/")
    }


def test_the_image_holds_exactly_the_tree_that_local_mode_runs() -> None:
    """Every module of pgbouncer/ and the roots of RDS, and nothing else."""
    modules = set((ROOT / "pgbouncer").rglob("*.py"))
    assert set(tree()) == modules | {ROOT / ROOTS_OF_RDS}
    assert re.findall(r"^COPY --from=(.+)$", DOCKERFILE, re.MULTILINE) == ["build /image /"]


def test_every_file_of_the_folder_is_in_the_image_or_builds_it() -> None:
    """A file that the build does not read would change the image's hash for nothing."""
    files = {path for path in (ROOT / "pgbouncer").rglob("*") if path.is_file()}
    files = {path for path in files if "__pycache__" not in path.parts}
    assert files == set(copies()) - {ROOT / ROOTS_OF_RDS} | {ROOT / "pgbouncer" / "Dockerfile"}


def test_the_image_starts_what_local_mode_starts() -> None:
    """Both run the package as a module, from the folder above it."""
    assert 'ENTRYPOINT ["python3", "-m", "pgbouncer"]' in DOCKERFILE
    assert '[sys.executable, "-m", "pgbouncer"]' in inspect.getsource(Pooler)


def test_the_copied_tree_runs_by_itself(tmp_path: Path) -> None:
    """Nothing of the repository besides the copied files is needed; the bundle is found."""
    for file, target in tree().items():
        (tmp_path / target.strip("/")).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / target.strip("/"))
    folder = re.search(r"^WORKDIR /(\S+)$", DOCKERFILE, re.MULTILINE)
    assert folder is not None
    run = subprocess.run(
        [sys.executable, "-m", "pgbouncer"],
        cwd=tmp_path / folder[1],
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 78
    assert "DATABASE_HOST is missing" in run.stderr
    assert "SERVER_TLS_CA_FILE" not in run.stderr


def lock(name: str) -> list[list[str]]:
    """Read the packages of a lock: architecture, checksum and path."""
    lines = [line.split() for line in (ROOT / "pgbouncer" / name).read_text().splitlines()]
    return [line for line in lines if len(line) == 3]


def test_the_locked_pgbouncer_has_the_fixes() -> None:
    """For both architectures that Lambda and Fargate have, and in the version that is named."""
    versions = {
        architecture: path.split("_")[1] for architecture, _, path in lock("pgbouncer.lock")
    }
    (version,) = set(versions.values())
    assert set(versions) == {"amd64", "arm64"}
    assert (ROOT / "pgbouncer/pgbouncer.lock").read_text().startswith(f"version {version}\n")
    assert tuple(map(int, version.partition("-")[0].split("."))) >= (1, 26, 1)


def test_both_architectures_have_the_same_packages() -> None:
    """Each once, with a checksum, and nothing that only packages' scripts run."""
    packages: dict[str, list[str]] = {"amd64": [], "arm64": [], "all": []}
    for architecture, checksum, path in lock("image.lock"):
        assert re.fullmatch("[0-9a-f]{64}", checksum)
        packages[architecture].append(Path(path).name.partition("_")[0])
    assert sorted(packages["amd64"]) == sorted(packages["arm64"])
    names = packages["amd64"] + packages["all"]
    assert len(names) == len(set(names))
    assert {"libc6", "libssl3t64", "python3-boto3", "ca-certificates"} <= set(names)
    assert not {"perl-base", "dpkg", "apt", "postgresql-common", "pgbouncer"} & set(names)


def test_the_image_drops_root() -> None:
    """The account is a number, which needs no file to be known."""
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)


def test_the_image_needs_one_writable_folder_and_no_privilege() -> None:
    """The root filesystem can be read-only, and the account gets back nothing that it lacks."""
    (folder,) = re.findall(r'^VOLUME \["(\S+)"\]$', DOCKERFILE, re.MULTILINE)
    default = inspect.getsource(Settings.from_env)
    assert f'environment.get("RUN_DIR") or "{folder}"' in default
    assert f'--mode=0700 --owner=10001 --group=10001 "$1{folder}"' in SCRIPT
    assert "PYTHONDONTWRITEBYTECODE=1" in DOCKERFILE
    privilege = r"setcap|sudo|gosu|chmod \S*s|mode=[2-7][0-7]{3}"
    assert not re.search(privilege, DOCKERFILE + SCRIPT)
    assert re.findall(r"^(USER|ENTRYPOINT|CMD|RUN)\b", DOCKERFILE, re.MULTILINE)[-2:] == [
        "USER",
        "ENTRYPOINT",
    ]


# Which program builds it


def add_builder(folder: Path, name: str, code: int) -> None:
    """Add a program that notes how it was started, and ends with a code."""
    program = folder / name
    program.write_text(f'#!/bin/sh\necho "$PWD $0 $*" >> "{folder}/started"\nexit {code}\n')
    program.chmod(0o755)


def test_the_first_builder_that_works_is_taken(tmp_path: Path) -> None:
    """A client without its daemon does not count; CDK_DOCKER decides alone."""
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    add_builder(tmp_path, "docker", 1)
    add_builder(tmp_path, "finch", 0)
    add_builder(tmp_path, "podman", 0)
    assert image.find_builder(environment) == str(tmp_path / "finch")
    chosen = environment | {"CDK_DOCKER": "podman"}
    assert image.find_builder(chosen) == str(tmp_path / "podman")
    with pytest.raises(image.ImageError, match="docker does not work: exit code 1"):
        image.find_builder(environment | {"CDK_DOCKER": "docker"})


def test_without_a_builder_the_message_says_what_to_install(tmp_path: Path) -> None:
    """Each program that was looked for is named."""
    with pytest.raises(image.ImageError, match="no container builder works here") as caught:
        image.find_builder({"PATH": str(tmp_path)})
    assert "docker is not installed; finch is not installed" in str(caught.value)
    assert "apt install buildah mmdebstrap" in str(caught.value)


def test_the_image_is_built_from_the_cdk_s_folder(tmp_path: Path) -> None:
    """For the architecture that is asked for, with everything that the Dockerfile copies."""
    add_builder(tmp_path, "finch", 0)
    image.build("arm64", {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    started = (tmp_path / "started").read_text().splitlines()[-1]
    assert "--platform linux/arm64" in started
    context = Path(started.partition(" ")[0])
    assert all((context / file.relative_to(ROOT)).is_file() for file in copies())


def test_a_lock_tells_its_time() -> None:
    """That of the snapshot of Debian's archive."""
    made = image.locked_at("version 1\nsnapshot 20261030T090000Z\n")
    assert made == datetime(2026, 10, 30, 9, tzinfo=UTC)
