"""Build the pooler's image with an installed container builder, or write new locks for it.

python -m lambda_pg_cdk.tools.image build --architecture arm64
python -m lambda_pg_cdk.tools.image lock
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from lambda_pg_cdk import IN_CHECKOUT, PACKAGE
from lambda_pg_cdk.layer.build import MACHINES, Target
from lambda_pg_cdk.stage.sources import pooler_context

BUILDERS = ("docker", "finch", "podman", "buildah")
BUILDER_SECONDS = 20
TAG = "lambda-pg-pooler"
BASE = "localhost/lambda-pg-base"
"""A local image that replaces debian:trixie-slim if no registry can be reached."""
RELEASE = "trixie"
LOCKS = ("pgbouncer.lock", "image.lock")
PLATFORMS = {"arm64": "arm64", "x86_64": "amd64"}
"""Debian's and containers' names of Lambda's architectures."""


class ImageError(RuntimeError):
    """The image or its locks could not be made; the message says what is missing and what to do."""


def find_builder(environment: Mapping[str, str]) -> str:
    """Name the program that builds images: `CDK_DOCKER`, else the first that works."""
    chosen = environment.get("CDK_DOCKER")
    problems = []
    for name in (chosen,) if chosen else BUILDERS:
        path = shutil.which(name, path=environment.get("PATH"))
        problem = builder_problem(path) if path else "is not installed"
        if path and not problem:
            return path
        problems.append(f"{name} {problem}")
    raise ImageError(
        f"The pooler's image cannot be built: no container builder works here "
        f"({'; '.join(problems)}). Install one of docker, finch, podman or buildah "
        "- Debian: apt install buildah mmdebstrap"
    )


def builder_problem(path: str) -> str:
    """Run a builder; return what is wrong with it, or nothing."""
    try:
        result = subprocess.run(
            [path, "info"], capture_output=True, text=True, check=False, timeout=BUILDER_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    if result.returncode == 0:
        return ""
    lines = result.stderr.strip().splitlines()
    return f"does not work: {lines[-1] if lines else f'exit code {result.returncode}'}"


def build(architecture: str, environment: Mapping[str, str]) -> None:
    """Build the image from the same folder that the CDK builds it from, and tag it."""
    builder = find_builder(environment)
    # podman and buildah need no runc then; Docker before 23 needs BuildKit for $BUILDPLATFORM.
    environment = {"BUILDAH_ISOLATION": "chroot", "DOCKER_BUILDKIT": "1", **environment}
    here = PLATFORMS[Target.interpreter().architecture]
    command = [builder, "build", "--tag", TAG, "--file", "pgbouncer/Dockerfile"]
    command += ["--platform", f"linux/{PLATFORMS[architecture]}"]
    name = Path(builder).name
    if name in {"podman", "buildah"}:
        # By default buildah 1.28 (in podman 4.3) uses the image's platform for it.
        command += ["--layers", "--build-arg", f"BUILDPLATFORM=linux/{here}"]
        command += ["--build-arg", f"BASE={_base(builder, environment)}"]
    _run([*command, "."], pooler_context(Target("3.13", architecture)), environment)


def _base(builder: str, environment: Mapping[str, str]) -> str:
    """Return a base image for the build stage; make one if none can be pulled."""
    name = f"docker.io/library/debian:{RELEASE}-slim"
    if _succeeds([builder, "inspect", "--type", "image", BASE], environment):
        return BASE
    if _succeeds([builder, "pull", "--quiet", name], environment):
        return name
    mmdebstrap = shutil.which("mmdebstrap", path=environment.get("PATH"))
    if mmdebstrap is None:
        raise ImageError(
            f"{name} cannot be pulled, and mmdebstrap, which makes an image like it, is not "
            "installed - Debian: apt install mmdebstrap"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _run([mmdebstrap, "--variant=apt", RELEASE, "base.tar"], folder, environment)
        (folder / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
        _run([builder, "build", "--tag", BASE, "."], folder, environment)
    return BASE


def lock() -> None:
    """Write new locks of Debian's current packages."""
    if not IN_CHECKOUT:
        raise ImageError(
            f"{PACKAGE} is an installed package, which keeps its locks: take the newest version of "
            "lambda-pg-cdk, or lock in a checkout of its repository"
        )
    if shutil.which("apt-get") is None:
        raise ImageError(
            "Locking the image's packages needs apt-get, which is not installed. Run it in Debian: "
            "docker run --rm --volume $PWD/pgbouncer:/locks debian:trixie-slim "
            "sh /locks/packages.sh lock /locks amd64 arm64"
        )
    folder = PACKAGE / "pgbouncer"
    with tempfile.TemporaryDirectory() as scratch:
        command = ["sh", str(folder / "packages.sh"), "lock", scratch, *sorted(PLATFORMS.values())]
        _run(command, folder, os.environ)
        for name in LOCKS:
            shutil.copyfile(Path(scratch) / name, folder / name)


def locked_at(lock: str) -> datetime:
    """Return the time of a lock: that of the snapshot of Debian's archive with all its packages."""
    stamp = next(line.split()[1] for line in lock.splitlines() if line.startswith("snapshot "))
    return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def _run(command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(command, cwd=folder, env=dict(environment), check=False)
    if done.returncode:
        raise ImageError(f"`{' '.join(command)}` failed with exit code {done.returncode}")


def _succeeds(command: list[str], environment: Mapping[str, str]) -> bool:
    done = subprocess.run(command, env=dict(environment), capture_output=True, check=False)
    return done.returncode == 0


def main() -> int:
    """Run a command; return the exit code."""
    parser = argparse.ArgumentParser(description="The pooler's image.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    builds = verbs.add_parser("build", help="build it")
    builds.add_argument(
        "--architecture",
        choices=sorted(MACHINES),
        default=Target.interpreter().architecture,
        help="processor of the image; default: this machine's",
    )
    verbs.add_parser("lock", help="lock Debian's current packages")
    arguments = parser.parse_args()
    try:
        if arguments.verb == "lock":
            lock()
        else:
            build(arguments.architecture, os.environ)
            print(f"built {TAG} for {arguments.architecture}")
    except ImageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
