"""Fetch packages of one Debian release into a folder, with apt but without installing anything.

apt runs with separate folders for lists, cache and state: it needs no root, checks the archive's
signatures as usual, and does not change the machine's packages. It uses the machine's mirror, with
the name of another release.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

APT_FOLDER = Path("/etc/apt")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# All packages that Debian has had, by time.
DEBIAN = "debian.org"
SNAPSHOTS = f"https://snapshot.{DEBIAN}/archive/debian"
APT_HELPER = "/usr/lib/apt/apt-helper"
# Short timeouts: if one archive does not answer, the next one is tried.
APT_HELPER_OPTIONS = (
    "-qq",
    "--option=APT::Sandbox::User=",
    "--option=Acquire::Retries=1",
    "--option=Acquire::http::Timeout=15",
    "--option=Acquire::https::Timeout=15",
)
RELEASES = (
    "bullseye", "bookworm", "trixie", "forky", "duke", "sid",
    "oldoldstable", "oldstable", "stable", "testing", "unstable",
)  # fmt: skip
SECURITY = re.compile(r"^([a-z]+)(-security|/updates)$")


class DebianPackagesError(LookupError):
    """The packages could not be fetched; has the reason."""


@dataclass(frozen=True)
class Source:
    """One entry of apt's configuration: an archive, its releases, its parts, its keys."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str | None = None

    @property
    def is_release(self) -> bool:
        """Whether this is Debian's main archive."""
        return self._is_debian and any(suite in RELEASES for suite in self.suites)

    @property
    def is_security(self) -> bool:
        """Whether this is Debian's archive of security fixes."""
        names = [found[1] for suite in self.suites if (found := SECURITY.match(suite))]
        return self._is_debian and any(name in RELEASES for name in names)

    @property
    def _is_debian(self) -> bool:
        # Other archives use Debian's release names too, but not both its part and its path or keys.
        known = "debian-archive" in (self.signed_by or "") or "debian" in self.uri
        return known and "main" in self.components

    def render(self) -> str:
        """Render the entry in apt's newer format."""
        lines = [
            "Types: deb",
            f"URIs: {self.uri}",
            f"Suites: {' '.join(self.suites)}",
            f"Components: {' '.join(self.components)}",
        ]
        if self.signed_by:
            lines.append(f"Signed-By: {self.signed_by}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Pin:
    """One version of one package: its paths in the archive, and the hashes of its files."""

    version: str
    snapshot: str  # a time when Debian's archive had it
    files: Mapping[str, tuple[str, str]]  # architecture → SHA-256 and path


def read_pin(text: str) -> Pin:
    """Read the lines of a lock file: `version`, `snapshot`, then one for each architecture."""
    lines = dict(line.split(" ", 1) for line in text.splitlines())
    version, snapshot = lines.pop("version"), lines.pop("snapshot")
    files = {name: (line.split()[0], line.split()[1]) for name, line in lines.items()}
    return Pin(version, snapshot, files)


def parse_list(text: str) -> Iterator[Source]:
    """Parse apt's one-line format (`deb [options] uri suite components`)."""
    for line in text.splitlines():
        found = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if found is None:
            continue
        options, uri, suite, components = found.groups()
        signed = re.search(r"signed-by=(\S+)", options or "")
        yield Source(uri, (suite,), tuple(components.split()), signed[1] if signed else None)


def parse_sources(text: str) -> Iterator[Source]:
    """Parse apt's format of paragraphs with fields (deb822)."""
    for paragraph in re.split(r"\n\s*\n", _without_comments(text)):
        fields = _fields(paragraph)
        if fields.get("enabled", "yes").lower() in {"no", "false", "0"}:
            continue
        if "deb" not in fields.get("types", "").split():
            continue
        for uri in fields.get("uris", "").split():
            yield Source(
                uri,
                tuple(fields.get("suites", "").split()),
                tuple(fields.get("components", "").split()),
                fields.get("signed-by"),
            )


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def _fields(paragraph: str) -> dict[str, str]:
    """Read the fields of one paragraph; a line that begins with a space continues the last one."""
    fields: dict[str, str] = {}
    name = ""
    for line in paragraph.splitlines():
        if line[:1].isspace() and name:
            fields[name] += "\n" + line
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def machine_sources(folder: Path = APT_FOLDER) -> list[Source]:
    """Read all entries of the machine's apt configuration."""
    lists = [folder / "sources.list", *sorted(folder.glob("sources.list.d/*.list"))]
    found = [entry for path in lists if path.is_file() for entry in parse_list(path.read_text())]
    for path in sorted(folder.glob("sources.list.d/*.sources")):
        found += parse_sources(path.read_text())
    return found


def sources_of(release: str, machine: Iterable[Source]) -> list[Source]:
    """Turn the machine's Debian entries into those of a release; raise when it has none."""
    machine = list(machine)
    main = next((entry for entry in machine if entry.is_release), None)
    security = next((entry for entry in machine if entry.is_security), None)
    if main is None:
        raise DebianPackagesError(
            f"apt's configuration in {APT_FOLDER} has no Debian archive to fetch {release} from"
        )
    chosen = [replace(main, suites=(release,))]
    if security is not None:
        chosen.append(replace(security, suites=(f"{release}-security",)))
    keys = str(KEYRING) if KEYRING.exists() else None
    return [
        replace(entry, components=("main",), signed_by=entry.signed_by or keys) for entry in chosen
    ]


def fetch(release: str, packages: Sequence[str], folder: Path) -> dict[str, str]:
    """Fetch packages of a release, unpack them into a folder, and return their versions.

    Raises DebianPackagesError if apt is missing, fails or does not reach its mirror.
    """
    _look_for_apt()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="apt-") as scratch:
        apt = _Apt(Path(scratch), sources_of(release, machine_sources()))
        apt.run("update")
        apt.run("download", *packages)
        files = sorted(Path(scratch).glob("*.deb"))
        for file in files:
            _unpack(file, folder)
        return dict(_name_and_version(file) for file in files)


def fetch_pinned(pin: Pin, folder: Path) -> None:
    """Fetch the one file that a pin allows, from the machine's mirror or from Debian's snapshots.

    Raises DebianPackagesError with the reasons if neither has it for this machine.
    """
    _look_for_apt()
    architecture = _run(["dpkg", "--print-architecture"], folder).strip()
    if architecture not in pin.files:
        raise DebianPackagesError(f"no package is pinned for {architecture}")
    checksum, path = pin.files[architecture]
    mirror = sources_of("testing", machine_sources())[0].uri.rstrip("/")
    reasons = []
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="apt-") as scratch:
        file = Path(scratch) / "pinned.deb"
        for archive in (mirror, f"{SNAPSHOTS}/{pin.snapshot}"):
            try:
                _download(f"{archive}/{path}", checksum, file)
            except DebianPackagesError as error:
                reasons.append(str(error))
            else:
                _unpack(file, folder)
                return
    raise DebianPackagesError("; ".join(reasons))


def _look_for_apt() -> None:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise DebianPackagesError(
                f"{program} is missing: this needs Debian or a distribution based on it"
            )


def _download(address: str, checksum: str, file: Path) -> None:
    """Fetch a file with apt, through the machine's proxy; check its checksum."""
    options = (*APT_HELPER_OPTIONS, "download-file")
    _run([APT_HELPER, *options, address, str(file), f"SHA256:{checksum}"], file.parent)


def _unpack(file: Path, folder: Path) -> None:
    _run(["dpkg-deb", "--extract", str(file), str(folder)], folder)


def _name_and_version(file: Path) -> tuple[str, str]:
    """Read them from a package's file name, in which apt writes a colon as %3a."""
    name, version, _ = file.name.split("_")
    return name, unquote(version)


class _Apt:
    """apt with separate folders."""

    def __init__(self, folder: Path, sources: Iterable[Source]) -> None:
        self.folder = folder
        for name in ("state/lists/partial", "cache/archives/partial", "sources"):
            (folder / name).mkdir(parents=True)
        (folder / "state" / "status").touch()
        (folder / "sources" / "debian.sources").write_text("\n".join(s.render() for s in sources))
        (folder / "apt.conf").write_text(_configuration(folder))

    def run(self, *arguments: str) -> None:
        _run(["apt-get", "-qq", f"--config-file={self.folder}/apt.conf", *arguments], self.folder)


def _configuration(folder: Path) -> str:
    """Point apt at a folder, without the hooks and preferences of the machine's configuration."""
    return f"""\
Dir::State "{folder}/state";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{folder}/sources";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Default-Release "";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


def _run(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, umask=0o022, check=False
    )
    if done.returncode:
        raise DebianPackagesError(
            f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()[-600:]}"
        )
    return done.stdout
