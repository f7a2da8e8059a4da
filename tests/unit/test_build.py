"""The layer as it is assembled: complete, reproducible, for any target from any machine."""

import dataclasses
import functools
import marshal
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import pytest

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.layer import build
from lambda_pg_cdk.layer.build import PYTHONS, BuildError, Target, assemble, build_layer, pinned

HERE = Target.interpreter()
FOREIGN = next(version for version in PYTHONS[1:] if version != HERE.python)

LOCK = """
# made by a tool
plain==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via something
old==2.0 ; python_full_version < '3.13' \\
    --hash=sha256:cc
arm==3.0 ; platform_machine == 'aarch64' \\
    --hash=sha256:dd
windows==4.0 ; sys_platform == 'win32' \\
    --hash=sha256:ee
"""


def names(target: Target) -> list[str]:
    """List what of the lock holds for a target."""
    return [line.partition("==")[0] for line in pinned(LOCK, target)]


def test_markers_are_judged_for_the_target() -> None:
    """Not for the interpreter that builds, as pip would."""
    assert names(Target("3.11", "x86_64")) == ["plain", "old"]
    assert names(Target("3.13", "x86_64")) == ["plain"]
    assert names(Target("3.14", "arm64")) == ["plain", "arm"]


def test_hashes_stay_with_their_package() -> None:
    """Every hash of the lock is handed on."""
    line = next(pinned(LOCK, Target("3.13", "x86_64")))
    assert line == "plain==1.0 --hash=sha256:aa --hash=sha256:bb"


@pytest.mark.parametrize("architecture", ["arm64", "x86_64"])
@pytest.mark.parametrize("python", PYTHONS)
def test_the_layer_can_be_built_for(python: str, architecture: str) -> None:
    """Every Python on both architectures gets its own binaries."""
    target = Target(python, architecture)
    folder = build_layer(target) / "python"
    tag = f"cpython-{python.replace('.', '')}-{target.machine}"
    assert list((folder / "psycopg_binary").glob(f"*{tag}*.so"))
    assert (folder / "typing_extensions.py").exists() == (python < "3.13")
    assert (folder / "lambda_pg" / "certs" / "aws.pem").exists()
    assert (folder / "lambda_pg" / "rehearsal.pem").exists()  # its absence would not be reported
    assert (folder / "lambda_pg" / "py.typed").exists()


def test_the_same_input_gives_the_same_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built twice, in two places at two times, names, modes and bytes are equal."""
    target = Target(HERE.python, HERE.architecture)
    known = build_layer(target)
    monkeypatch.setattr(build, "BUILD", tmp_path / "another-place")
    again = build_layer(target)
    assert again.is_relative_to(tmp_path)
    assert build.tree_hash(again) == build.tree_hash(known)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setattr(build, "BUILD", tmp_path / "built")
    return tmp_path / "built"


def source_of(folder: Path, text: str = "one = 1\n") -> build.Recipe:
    """Lay out a function's folder; return how it is assembled."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "handler.py").write_text(text)
    return build.Recipe(name="test", prefix="/var/task", sources=((folder, "."),))


def test_a_change_of_the_source_gives_another_tree(tmp_path: Path, cache: Path) -> None:
    """What is kept is keyed by all that it is made of."""
    recipe = source_of(tmp_path / "source")
    first = assemble(recipe, HERE)
    assert assemble(recipe, HERE) == first
    second = assemble(source_of(tmp_path / "source", "two = 2\n"), HERE)
    assert second != first
    assert (second / "handler.py").read_text() == "two = 2\n"


def test_wheels_are_compiled_once_and_a_changed_source_each_time(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file has the bytecode of its content, with the path at which Lambda has it."""
    wheels = tmp_path / "wheels"
    (wheels / "package").mkdir(parents=True)
    for name in ("package/module.py", "handler.py"):
        (wheels / name).write_text("value = 'wheel'\n")
    lock = tmp_path / "requirements.txt"
    lock.touch()
    monkeypatch.setattr(build, "install", lambda *_: wheels)
    given: list[bytes] = []
    run = subprocess.run

    def noting(*arguments: Any, **options: Any) -> Any:
        given.append(options["input"])
        return run(*arguments, **options)

    monkeypatch.setattr(build.subprocess, "run", noting)  # type: ignore[attr-defined]
    for text in ("value = 'one'\n", "value = 'two'\n"):
        folder = assemble(
            dataclasses.replace(source_of(tmp_path / "source", text), requirements=lock), HERE
        )
        for name in ("package/module.py", "handler.py"):
            compiled = Path(cache_from_source(str(folder / name))).read_bytes()
            code = marshal.loads(compiled[16:])  # noqa: S302 - made above
            assert code.co_filename == f"/var/task/{name}"
            assert code.co_consts[0] == ("wheel" if "module" in name else text[9:12])
    assert [each.count(b"module.py") for each in given] == [1, 0, 0]
    assert [each.count(b"handler.py") for each in given] == [1, 1, 1]


def test_a_source_that_does_not_exist_is_an_error(tmp_path: Path, cache: Path) -> None:
    """Otherwise the folder would lack it, and a function would fail at its import."""
    missing = tmp_path / "missing"
    recipe = build.Recipe(name="test", prefix="/var/task", sources=((missing, "."),))
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        assemble(recipe, HERE)


def test_a_build_with_nothing_to_do_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synth asks for it every time."""
    built = build_layer(HERE)
    monkeypatch.delattr(build, "_fill")
    assert build_layer(HERE) == built


def test_checkouts_share_what_is_built(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept by what it is made of, not by where that is: a fresh clone builds nothing."""
    first = assemble(source_of(tmp_path / "one"), HERE)
    recipe = source_of(tmp_path / "another")
    monkeypatch.delattr(build, "_fill")
    assert assemble(recipe, HERE) == first


def layer_of(checkout: Path) -> build.Recipe:
    """Copy the layer's sources into another checkout; return how they are assembled there."""
    copy = shutil.copytree(PROJECT / "layer", checkout / "layer")
    sources = ((copy / "python", "python"), (PROJECT / "LICENSE", "LICENSE"))
    recipe = dataclasses.replace(build.LAYER, sources=sources)
    requirements, patch = copy / "requirements.txt", copy / (build.LAYER.patch or Path()).name
    return dataclasses.replace(recipe, requirements=requirements, patch=patch)


def test_so_do_they_with_the_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock file and its patch are each checkout's own, too."""
    built, recipe = build_layer(HERE), layer_of(tmp_path)
    monkeypatch.delattr(build, "_fill")
    assert assemble(recipe, HERE) == built


@pytest.mark.parametrize("changed", ["requirements.txt", "psycopg-3.3.9.patch", "python/new.py"])
def test_a_change_of_anything_makes_another_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """The lock file, the patch, the sources."""
    recipe = layer_of(tmp_path)
    assert assemble(recipe, HERE) == build_layer(HERE)
    with (tmp_path / "layer" / changed).open("a") as file:
        file.write("# changed\n")
    monkeypatch.delattr(build, "_fill")
    with pytest.raises(NameError):
        assemble(recipe, HERE)


def test_another_interpreter_builds_for_itself(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.11.2 does not compile as 3.11.7 does; without bytecode any of them will do."""
    recipe, foreign = source_of(tmp_path / "source"), Target(FOREIGN, "x86_64")
    here, there = assemble(recipe, HERE), assemble(recipe, foreign)
    monkeypatch.setattr(sys, "version", "another one")
    assert assemble(recipe, HERE) != here
    assert assemble(recipe, foreign) == there


def test_two_that_build_the_same_at_once_get_the_same(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have found nothing: the second one's is given up for the first one's."""
    recipe, fill = source_of(tmp_path / "source"), build._fill
    both = threading.Barrier(2, timeout=60)

    def together(*arguments: Any) -> None:
        both.wait()
        fill(*arguments)
        both.wait()

    monkeypatch.setattr(build, "_fill", together)
    with ThreadPoolExecutor(2) as executor:
        found = [executor.submit(assemble, recipe, HERE) for _ in range(2)]
        (folder,) = {each.result() for each in found}
    assert (folder / "handler.py").exists()
    assert list(folder.parent.iterdir()) == [folder]


def test_a_build_that_is_killed_leaves_nothing_that_is_used(tmp_path: Path, cache: Path) -> None:
    """Not even an exception handler runs then."""
    recipe = source_of(tmp_path / "source")
    child = os.fork()
    if child == 0:
        build._normalise = lambda folder: os._exit(bool(folder) * 9)  # the last step
        assemble(recipe, HERE)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(list(cache.rglob("handler.py"))) == 1
    folder = assemble(recipe, HERE)
    assert (folder / "handler.py").stat().st_mtime == 0


def age(folder: Path) -> None:
    """Have a folder be unused for longer than it is kept."""
    long_ago = time.time() - 2 * build.KEEP_SECONDS
    os.utime(folder, (long_ago, long_ago))


def test_what_nobody_has_asked_for_is_removed_but_the_last_few(tmp_path: Path, cache: Path) -> None:
    """Every edit makes a folder more; and a checkout may come after a week."""
    recipes = [source_of(tmp_path / str(n), f"n = {n}\n") for n in range(build.KEEP_LAST + 3)]
    folders = [assemble(recipe, HERE) for recipe in recipes[:-1]]
    for folder in folders:
        age(folder)
    used = assemble(recipes[0], HERE)
    new = assemble(recipes[-1], HERE)
    left = set(used.parent.iterdir())
    assert {used, new} < left
    assert len(left) == build.KEEP_LAST


def test_half_of_a_removed_folder_is_not_found(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt comes at any time: what is being removed has left its place before."""
    monkeypatch.setattr(build, "KEEP_LAST", 0)
    recipe = source_of(tmp_path / "source")
    age(assemble(recipe, HERE))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build._forget_old(cache / f"test-{HERE.python}-{HERE.architecture}")
    monkeypatch.delattr(build, "_fill")
    with pytest.raises(NameError):
        assemble(recipe, HERE)


def test_what_is_not_needed_is_left_out() -> None:
    """No scripts, no installer's notes, no stubs of others, no tests."""
    folder = build_layer(HERE)
    left = {path.name for path in folder.rglob("*")}
    assert not left & {"bin", "RECORD", "INSTALLER", "REQUESTED", "tests", "_psycopg.pyi"}


def test_licences_are_carried() -> None:
    """Each distribution's own text is in the layer."""
    packages = build_layer(HERE) / "python"
    for metadata in packages.glob("*.dist-info"):
        assert list(metadata.rglob("LICENSE*")), metadata.name
    text = next(packages.glob("psycopg-*/licenses/LICENSE*")).read_text()
    assert "GNU LESSER GENERAL PUBLIC LICENSE" in text


def test_what_is_changed_in_psycopg_is_marked() -> None:
    """Its licence asks for it: a line in each changed file, and a list beside the licence."""
    published = build.assemble(build.PUBLISHED, HERE) / "python"
    packages = build_layer(HERE) / "python"
    notice = next(packages.glob("psycopg-*/licenses/NOTICE*")).read_text()
    changed = 0
    for path in (*packages.glob("psycopg/**/*.py"), *packages.glob("psycopg_binary/*.py")):
        name = path.relative_to(packages)
        before = published / name
        if not before.exists() or path.read_text() != before.read_text():
            changed += 1
            assert path.read_text().startswith("# Modified for the layer of lambda-pg, 20")
            assert f"    {name}\n" in notice
    assert notice.count(".py\n") == changed > 5
    assert not list(published.glob("psycopg-*/licenses/NOTICE*"))


def test_the_layer_s_psycopg_says_its_version_without_looking_it_up() -> None:
    """Its import leaves out what no synchronous connection needs; the published one does not."""
    program = (
        "import sys, psycopg, psycopg_binary; print(psycopg.__version__, "
        "psycopg_binary.__version__, psycopg.pq.__impl__, *sorted({'asyncio', 'ctypes', "
        "'importlib.metadata', 'typing_extensions'} & set(sys.modules)))"
    )
    shown = []
    for folder in (build_layer(HERE), build.assemble(build.PUBLISHED, HERE)):
        environment = {"PYTHONPATH": str(folder / "python")}
        command = [sys.executable, "-S", "-c", program]
        shown.append(subprocess.check_output(command, env=environment, text=True).split())
    ours, published = shown
    assert ours[2] == "binary"
    assert ours == published[:3]
    assert {"asyncio", "importlib.metadata"} <= set(published)


PATCH = """
--- a/thing/one.py
+++ b/thing/one.py
@@ -1,3 +1,3 @@
 first = 1
-second = 2
+second = 3
 third = 3
--- /dev/null
+++ b/thing/new.py
@@ -0,0 +1 @@
+new = True
"""


def things(folder: Path, one: str) -> Path:
    """Lay out a package with the file that PATCH changes, and the patch; return the patch."""
    for name in ("thing", "thing-1.0.dist-info"):
        (folder / "packages" / name).mkdir(parents=True)
    (folder / "packages" / "thing" / "one.py").write_text(one)
    patch = folder / "thing-1.0.patch"
    patch.write_text(PATCH)
    return patch


def test_a_patch_changes_what_it_names(tmp_path: Path) -> None:
    """A text in a file, and a file that was not there."""
    patch = things(tmp_path, "zero = 0\nfirst = 1\nsecond = 2\nthird = 3\n")
    build.apply_patch(patch, tmp_path / "packages")
    changed = (tmp_path / "packages" / "thing" / "one.py").read_text()
    assert changed == "zero = 0\nfirst = 1\nsecond = 3\nthird = 3\n"
    assert (tmp_path / "packages" / "thing" / "new.py").read_text() == "new = True\n"


@pytest.mark.parametrize(
    "one", ["first = 1\nsecond = 4\nthird = 3\n", "first = 1\nsecond = 2\nthird = 3\n" * 2]
)
def test_a_patch_that_does_not_apply_is_refused(tmp_path: Path, one: str) -> None:
    """The text that it replaces occurs once, or no layer is built."""
    patch = things(tmp_path, one)
    with pytest.raises(BuildError, match=r"thing-1\.0\.patch does not apply to thing/one\.py"):
        build.apply_patch(patch, tmp_path / "packages")


def test_a_patch_for_another_version_is_refused(tmp_path: Path) -> None:
    """Also where its texts would fit: one of them is the version."""
    patch = things(tmp_path, "first = 1\nsecond = 2\nthird = 3\n")
    other = patch.rename(tmp_path / "thing-1.1.patch")
    with pytest.raises(BuildError, match=r"for thing-1\.1, which is not among"):
        build.apply_patch(other, tmp_path / "packages")


def test_a_layer_that_cannot_be_patched_is_not_left_half_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next build must not take it for a complete one."""
    wheels = build.install(build.LAYER.requirements or Path(), HERE)
    monkeypatch.setattr(build, "BUILD", tmp_path)
    monkeypatch.setattr(build, "install", lambda *_: wheels)
    text = (build.LAYER.patch or Path()).read_text()
    patch = tmp_path / "psycopg-3.3.9.patch"
    patch.write_text(text.replace("-import ctypes.util", "-import ctypes.another"))
    with pytest.raises(BuildError, match=r"does not apply to psycopg/pq/misc\.py"):
        assemble(dataclasses.replace(build.LAYER, patch=patch), HERE)
    assert list(tmp_path.rglob("*.py")) == []


def test_a_package_without_a_licence_is_refused(tmp_path: Path) -> None:
    """It is named, since the layer is given to others."""
    (tmp_path / "thing-1.0.dist-info").mkdir()
    with pytest.raises(BuildError, match=r"thing-1\.0"):
        build._require_licences(tmp_path)


def test_the_layer_s_bytecode_is_used(tmp_path: Path) -> None:
    """The target's interpreter imports what is compiled and never looks at the source."""
    copy = tmp_path / "opt"
    shutil.copytree(build_layer(HERE), copy)
    for source in (copy / "python").rglob("*.py"):
        source.write_text("raise RuntimeError('compiled from source')\n")
    environment = {"PYTHONPATH": str(copy / "python"), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-B", "-c", "import psycopg, lambda_pg; print(psycopg.__file__)"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith(str(copy))


@pytest.mark.parametrize("architecture", ["arm64", "x86_64"])
@pytest.mark.parametrize("python", PYTHONS)
def test_the_layer_is_small(python: str, architecture: str) -> None:
    """Lambda fetches it before each cold start: at most 7 MB zipped."""
    assert most_zipped(build_layer(Target(python, architecture))) < 7e6


def most_zipped(folder: Path) -> int:
    """Bound the size of a folder's zip file from above, in an eighth of the time that it takes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = sum(2 * len(str(path.relative_to(folder))) + 100 for path in files)
    return names + sum(len(zlib.compress(path.read_bytes(), 1)) for path in files)


def test_a_layer_s_bound_is_near_its_size() -> None:
    """At most a seventh above what Lambda fetches."""
    folder = build_layer(HERE)
    size = build.zipped_bytes(folder)
    assert size < most_zipped(folder) < size * 1.15


def test_the_layer_imports_little_besides_psycopg() -> None:
    """No boto3, no HTTP client, and nothing that is not on this list: each costs a cold start."""
    program = (
        "import sys, psycopg; before = set(sys.modules); import lambda_pg; "
        "print(*set(sys.modules) - before - set(sys.builtin_module_names))"
    )
    environment = {"PYTHONPATH": str(build_layer(HERE) / "python")}
    command = [sys.executable, "-S", "-c", program]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    others = {name for name in shown.stdout.split() if name.partition(".")[0] != "lambda_pg"}
    allowed = {"hashlib", "_hashlib", "_blake2", "hmac", "contextvars", "_contextvars"}
    allowed |= {"urllib", "urllib.parse"}  # pathlib imports them too, before Python 3.13
    assert others <= allowed


def test_the_import_is_timed_in_the_layer() -> None:
    """What is timed is the import of a whole module, in milliseconds: about 100."""
    nothing, everything = (build.import_milliseconds(m, starts=2) for m in ("sys", "lambda_pg"))
    assert nothing < everything
    assert 5 < everything < 60_000  # on a busy machine, and still no microseconds


def test_a_release_is_the_same_file_wherever_it_is_made(tmp_path: Path) -> None:
    """Named by version, Python and processor; laid out as Lambda unpacks it below /opt."""
    target = Target("3.13", "arm64")
    folder = build_layer(target)
    first = build.write_release(folder, target, tmp_path / "first")
    copied = shutil.copytree(folder, tmp_path / "copy")
    (copied / "python" / "lambda_pg" / "__init__.py").touch()
    second = build.write_release(copied, target, tmp_path / "second")
    assert re.fullmatch(r"lambda-pg-\d+\.\d+\.\d+-python3\.13-arm64\.zip", first.name)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert "python/lambda_pg/__init__.py" in archive.namelist()
        archive.extractall(tmp_path / "opt")
    assert (tmp_path / "opt" / "python" / "psycopg" / "__init__.py").stat().st_mode & 0o444 == 0o444


def test_missing_bytecode_is_said() -> None:
    """A target of another version gets none, and the builder says so."""
    target = Target(FOREIGN, "x86_64")
    assert any("no bytecode" in note for note in build.notes(target))
    assert not list(build_layer(target).rglob("*.pyc"))
    assert not list(build.notes(HERE))


@pytest.mark.parametrize(("python", "architecture"), [("3.10", "arm64"), ("3.13", "i386")])
def test_an_unsupported_target_is_refused(python: str, architecture: str) -> None:
    """The message names what is supported."""
    with pytest.raises(BuildError, match=r"3\.11|arm64"):
        Target(python, architecture)


def test_wheels_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    """Pip's own words follow the lock file's name and the target."""
    lock = tmp_path / "requirements.txt"
    lock.write_text(f"psycopg==3.3.9 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(BuildError, match=r"requirements\.txt.*(?s:.)*hash"):
        build.install(lock, HERE)


def test_the_command_line_prints_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It copies the result to the output folder and says how large and how quick it is."""
    output = tmp_path / "layer"
    command = ["--python", HERE.python, "--architecture", HERE.architecture]
    monkeypatch.setattr(sys, "argv", ["build", *command, "--output", str(output)])
    once = functools.partial(build.import_milliseconds, starts=1)
    monkeypatch.setattr(build, "import_milliseconds", once)
    build.main()
    shown = capsys.readouterr().out
    for word in ("zipped", "unpacked", "imports"):
        assert word in shown
    assert build.tree_hash(output) in shown
    assert (output / "python" / "lambda_pg").is_dir()


def test_the_command_line_is_a_module() -> None:
    """As `make layer` runs it."""
    command = [sys.executable, "-m", "lambda_pg_cdk.layer.build", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)
    assert "Assemble the layer." in shown.stdout
