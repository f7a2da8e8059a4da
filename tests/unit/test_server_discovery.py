"""Finding servers: versions, apt's configuration, and each way by force."""

from pathlib import Path

import pytest

from lambda_pg_cdk.local.install import debian_packages, pgbouncer_discovery, postgres_discovery
from lambda_pg_cdk.local.install.debian_packages import (
    DebianPackagesError,
    Source,
    machine_sources,
    parse_list,
    parse_sources,
    sources_of,
)
from lambda_pg_cdk.local.install.pgbouncer_discovery import (
    PgBouncerNotFoundError,
    find_pgbouncer,
    has_fixes,
)
from lambda_pg_cdk.local.install.postgres_discovery import PostgresNotFoundError, find_postgres

MIRROR = "http://mirror.example/debian"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEB822 = f"""\
# made by the installer
Types: deb deb-src
URIs: {MIRROR}
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: {KEYS}

Types: deb
URIs: {MIRROR}-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://elsewhere.example/debian
Suites: bookworm
Components: main
Enabled: no
"""
ONE_LINE = f"""\
# deb http://commented.example/debian bookworm main
deb-src {MIRROR} bookworm main
deb [arch=amd64 signed-by=/keys/tool.gpg] http://tool.example/linux/debian bookworm stable
deb [signed-by={KEYS}] {MIRROR} bookworm main contrib # the mirror
deb {MIRROR}-security bookworm-security main
"""


def program(folder: Path, name: str, output: str) -> None:
    """Write a program that prints something."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)


# Versions of PgBouncer


@pytest.mark.parametrize(
    ("version", "fixed"),
    [
        ("1.18.0-1+b1", False),
        ("1.24.1-1+deb13u2", False),
        ("1.25.2", False),
        ("1.26.0-1", False),
        ("1.26.1", True),
        ("1.26.1-1", True),
        ("1.26.1-1.pgdg12+1", True),
        ("1.30.0", True),
        ("of an unknown version", False),
    ],
)
def test_only_versions_with_the_fixes_pass(version: str, fixed: bool) -> None:
    """Upstream has them from 1.26.1 on, and no older version of Debian has them."""
    assert has_fixes(version) is fixed


# The pinned package


def fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: dict[str, str]
) -> tuple[str, list[str]]:
    """Fetch PgBouncer with archives that have it only where `answers` names them.

    Return the version, and the places that were asked, in their order.
    """
    asked: list[str] = []

    def download(address: str, checksum: str, _: Path) -> None:
        asked.append(address)
        if not any(place in address for place in answers):
            raise DebianPackagesError(f"{address} has no file of {checksum}")

    def fetch(release: str, packages: tuple[str, ...], _: Path) -> dict[str, str]:
        asked.append(release)
        return dict.fromkeys(packages, answers.get(release, "0"))

    monkeypatch.setattr(debian_packages, "_download", download)
    monkeypatch.setattr(debian_packages, "_unpack", lambda *_: None)
    monkeypatch.setattr(debian_packages, "_run", lambda *_: "arm64\n")
    monkeypatch.setattr(debian_packages, "_look_for_apt", lambda: None)
    monkeypatch.setattr(debian_packages, "machine_sources", lambda: [*parse_sources(DEB822)])
    monkeypatch.setattr(debian_packages, "fetch", fetch)
    pin = debian_packages.read_pin(pgbouncer_discovery.LOCK.read_text())
    return pgbouncer_discovery._fetch(pin, tmp_path), asked


def test_the_pinned_package_comes_from_the_machines_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the stable release's libraries, and nothing else is asked."""
    version, asked = fetched(monkeypatch, tmp_path, {MIRROR: "", "trixie": ""})
    assert version.startswith("1.26.1")
    assert asked[0] == "trixie"
    assert len(asked) == 2
    assert asked[1].startswith(f"{MIRROR}/pool/main/p/pgbouncer/pgbouncer_1.26.1-1_arm64")


def test_a_mirror_that_went_on_leaves_the_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian keeps every package for ever, by the time at which it had it."""
    version, asked = fetched(monkeypatch, tmp_path, {debian_packages.SNAPSHOTS: ""})
    assert version.startswith("1.26.1")
    assert [place.split("/pool")[0] for place in asked[1:]] == [
        MIRROR,
        f"{debian_packages.SNAPSHOTS}/20261030T090000Z",
    ]


def test_without_both_a_newer_version_of_testing_is_taken_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With testing's libraries: it may need newer ones."""
    version, asked = fetched(monkeypatch, tmp_path, {"testing": "1.27.0-1"})
    assert version == "1.27.0-1"
    assert asked[-1] == "testing"


def test_an_old_version_of_testing_is_refused_with_every_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose testing release is a year old: the message says what was tried."""
    with pytest.raises(PgBouncerNotFoundError, match=r"mirror\.example.*snapshot.*is 1\.25\.1-1"):
        fetched(monkeypatch, tmp_path, {"testing": "1.25.1-1"})


def test_the_lock_pins_both_architectures_of_one_version() -> None:
    """Graviton tasks run arm64, laptops often amd64; a checksum is 64 hexadecimal digits."""
    pin = debian_packages.read_pin(pgbouncer_discovery.LOCK.read_text())
    assert has_fixes(pin.version)
    assert set(pin.files) == {"amd64", "arm64"}
    for architecture, (checksum, path) in pin.files.items():
        assert len(checksum) == 64
        assert path.endswith(f"_{pin.version}_{architecture}.deb")


# apt's configuration


def test_both_formats_of_apt_are_read() -> None:
    """Comments, sources of source code and disabled paragraphs do not count."""
    assert [source.uri for source in parse_sources(DEB822)] == [MIRROR, f"{MIRROR}-security"]
    assert [source.uri for source in parse_list(ONE_LINE)] == [
        "http://tool.example/linux/debian",
        MIRROR,
        f"{MIRROR}-security",
    ]


@pytest.mark.parametrize("parsed", [[*parse_sources(DEB822)], [*parse_list(ONE_LINE)]])
def test_the_machines_mirror_is_used_for_the_other_release(parsed: list[Source]) -> None:
    """Same addresses, the other release, the main part only, the archive's keys."""
    main, security = sources_of("trixie", parsed)
    assert (main.uri, main.suites, main.components) == (MIRROR, ("trixie",), ("main",))
    assert main.signed_by == KEYS
    assert (security.uri, security.suites) == (f"{MIRROR}-security", ("trixie-security",))


def test_embedded_keys_survive() -> None:
    """A key that is written into the entry itself is passed on, line by line."""
    entry = Source(MIRROR, ("trixie",), ("main",)).render()
    text = f"{entry}Signed-By:\n -----BEGIN\n .\n abc\n"
    (source,) = parse_sources(text)
    assert source.render().endswith("Signed-By: \n -----BEGIN\n .\n abc\n")


def test_a_machine_without_a_debian_archive_is_told_so() -> None:
    """Another distribution's archive is not tried with Debian's release names."""
    other = parse_list("deb http://archive.example/ubuntu noble main universe\n")
    with pytest.raises(DebianPackagesError, match="has no Debian archive"):
        sources_of("trixie", other)


def test_the_folder_of_apt_is_read(tmp_path: Path) -> None:
    """Both the main file and the folder of parts count."""
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(ONE_LINE)
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    assert len(machine_sources(tmp_path)) == 5


# Each way by force


def test_an_installed_pgbouncer_that_is_new_enough_is_taken(tmp_path: Path) -> None:
    """The first one in PATH decides."""
    program(tmp_path / "bin", "pgbouncer", "PgBouncer 1.26.1")
    environment = {"PATH": str(tmp_path / "bin"), "LAMBDA_PG_PGBOUNCER": "installed"}
    found = find_pgbouncer(environment=environment)
    assert found.command == (str(tmp_path / "bin" / "pgbouncer"),)
    assert (found.version, found.origin) == ("1.26.1", "installed")


def test_an_installed_pgbouncer_that_is_too_old_is_refused_with_advice(tmp_path: Path) -> None:
    """The message names the program, its version and how to get a better one."""
    program(tmp_path / "bin", "pgbouncer", "PgBouncer 1.18.0")
    environment = {"PATH": str(tmp_path / "bin"), "LAMBDA_PG_PGBOUNCER": "installed"}
    with pytest.raises(
        PgBouncerNotFoundError, match=r"is 1\.18\.0; must be at least 1\.26\.1.*brew"
    ):
        find_pgbouncer(environment=environment)


def test_without_apt_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a Mac, say, both ways are named with their reasons."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LAMBDA_PG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(pgbouncer_discovery, "PLACES", ())
    monkeypatch.setattr("lambda_pg_cdk.local.install.pgbouncer_discovery.shareable", _made)
    with pytest.raises(PgBouncerNotFoundError, match="none is installed; apt-get is missing"):
        find_pgbouncer(report=lambda _: None)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_an_unknown_way_is_refused() -> None:
    """A typing error does not silently mean 'any'."""
    with pytest.raises(ValueError, match="LAMBDA_PG_PGBOUNCER is 'docker'; must be one of any"):
        find_pgbouncer(environment={"LAMBDA_PG_PGBOUNCER": "docker"})
    with pytest.raises(ValueError, match="LAMBDA_PG_POSTGRES is 'docker'; must be one of any"):
        find_postgres(17, environment={"LAMBDA_PG_POSTGRES": "docker"})


@pytest.fixture
def one_postgres(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine on which PostgreSQL 96.4 is installed and nothing else."""
    monkeypatch.setattr(postgres_discovery, "PLACES", ())
    program(tmp_path / "bin", "initdb", "")
    program(tmp_path / "bin", "postgres", "postgres (PostgreSQL) 96.4 (Debian 96.4-1)")
    return {"PATH": str(tmp_path / "bin")}


def test_an_installed_server_of_the_version_is_taken_first(one_postgres: dict[str, str]) -> None:
    """Nothing is fetched and nothing needs to be said."""
    reports: list[str] = []
    found = find_postgres(96, environment=one_postgres, report=reports.append)
    assert (found.version, found.major, found.origin, reports) == ("96.4", 96, "installed", [])


def test_another_installed_version_stands_in_with_a_note(one_postgres: dict[str, str]) -> None:
    """Where npm has not the version either, the nearest thing is used, and said."""
    reports: list[str] = []
    found = find_postgres(95, environment=one_postgres, report=reports.append)
    assert found.version == "96.4"
    assert reports == [found.note]
    assert "the deployed version is 95" in str(found.note)


def test_npm_alone_does_not_fall_back(one_postgres: dict[str, str]) -> None:
    """What is forced is done or refused."""
    environment = one_postgres | {"LAMBDA_PG_POSTGRES": "npm"}
    pinned = "pinned for 12, 13, 14, 15, 16, 17, 18, not for 96"
    with pytest.raises(PostgresNotFoundError, match=pinned):
        find_postgres(96, environment=environment)


def test_nothing_at_all_ends_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the version, what was tried, and how to get one."""
    monkeypatch.setattr(postgres_discovery, "PLACES", ())
    with pytest.raises(
        PostgresNotFoundError, match=r"No suitable PostgreSQL found: version 96.*brew"
    ):
        find_postgres(96, environment={"PATH": str(tmp_path)})
