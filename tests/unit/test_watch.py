"""What the development loop does with a save, without a cloud; and how it sees one."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lambda_pg_cdk.layer.build import Target
from lambda_pg_cdk.local.cloud import CodeError, DeploymentError, NeedsDeploymentError
from lambda_pg_cdk.local.development import files, watch
from lambda_pg_cdk.local.development.sources import DEPLOYMENT, THE_LAYER, Sources
from lambda_pg_cdk.local.development.watch import Watch
from lambda_pg_cdk.stage.sources import SOURCE

BROKEN = "def broken(:\n"


class Cloud:
    """Notes what it is asked for; `refusing` is raised for the next update of that function."""

    def __init__(self, folder: Path) -> None:
        """Be a cloud that has deployed two functions."""
        self.folder = folder
        self.asked: list[str] = []
        self.refusing: dict[str, Exception] = {}
        assembly = folder / "cdk" / "cdk.out"
        assembly.mkdir(parents=True)
        (assembly / "manifest.json").touch()
        sources = {name: f"functions/{name}" for name in ("orders", "users")}
        metadata = {
            f"/Stack/{name}": [
                {"type": "aws:cdk:logicalId", "data": name},
                {"type": SOURCE, "data": {"function": name, "folder": folder}},
            ]
            for name, folder in sources.items()
        }
        (assembly / "Stack.metadata.json").write_text(json.dumps(metadata))

    def _do(self, asked: str) -> None:
        self.asked.append(asked)
        if error := self.refusing.pop(asked, None):
            raise error

    def update_code(self, function: str, _code: Path) -> None:
        """Note the function."""
        self._do(function)

    def update_layer(self, _layer: Path) -> list[str]:
        """Note it."""
        self._do(THE_LAYER)
        return ["orders"]

    def deploy(self, *, app: Path) -> None:
        """Note it."""
        assert app.is_dir()
        self._do(DEPLOYMENT)


class Bench:
    """A project, and a watch on it."""

    def __init__(self, folder: Path) -> None:
        """Write the project."""
        self.project = folder / "project"
        self.cloud = Cloud(folder / "state")
        self.said: list[str] = []
        for name in ("app.py", "functions/orders/handler.py", "functions/users/handler.py"):
            self.write(name, "x = 1\n")
        self.watch = Watch(self.cloud, self.project, self.said.append)  # type: ignore[arg-type]

    def write(self, name: str, text: str) -> Path:
        """Write a file."""
        path = self.project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def save(self, **texts: str) -> None:
        """Save files at once: app, orders, users."""
        places = {"app": "app.py"}
        self.watch.deploy(
            {
                self.write(places.get(name, f"functions/{name}/handler.py"), text)
                for name, text in texts.items()
            }
        )


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A project whose code needs no building."""
    monkeypatch.setattr(watch, "load_stage", lambda _: None)
    monkeypatch.setattr(watch, "target_of", lambda _: Target.interpreter())
    monkeypatch.setattr(watch, "function_code", lambda folder, _extra, _target: folder)
    monkeypatch.setattr(watch, "build_layer", lambda _: tmp_path)
    return Bench(tmp_path)


def test_a_function_is_updated_alone(bench: Bench) -> None:
    """And one line says so."""
    bench.save(orders="x = 2\n")
    assert bench.cloud.asked == ["orders"]
    (line,) = bench.said
    assert line.startswith("orders: new code, ")


def test_functions_that_are_saved_at_once_are_all_updated(bench: Bench) -> None:
    """Each on its own."""
    bench.save(users="x = 2\n", orders="x = 2\n")
    assert bench.cloud.asked == ["orders", "users"]


def test_code_that_does_not_compile_is_shown_and_not_deployed(bench: Bench) -> None:
    """With file, line and place; the other function is updated, and this one once it compiles."""
    bench.save(orders=BROKEN, users="x = 2\n")
    assert bench.cloud.asked == ["users"]
    (shown,) = [each for each in bench.said if each.startswith("orders: ")]
    assert "the last version that works keeps running" in shown
    assert f'File "{bench.project}/functions/orders/handler.py", line 1' in shown
    assert "^" in shown
    assert "SyntaxError" in shown
    bench.save(users="x = 3\n")
    assert sum("SyntaxError" in each for each in bench.said) == 1, "it was said before"
    bench.save(orders="x = 3\n")
    assert bench.cloud.asked == ["users", "users", "orders"]


def test_another_file_of_a_function_does_not_deploy_its_broken_one(bench: Bench) -> None:
    """All Python files of the function count, not those of the last save only."""
    bench.write("functions/orders/handler.py", BROKEN)
    bench.watch.deploy({bench.write("functions/orders/sizes.py", "x = 1\n")})
    assert bench.cloud.asked == []


def test_a_file_with_a_nul_byte_does_not_compile_either(bench: Bench) -> None:
    """Python before 3.11.4 raises another error for it."""
    bench.save(orders="x = '\0'\n")
    assert bench.cloud.asked == []
    assert "null bytes" in bench.said[0]


def test_anything_else_is_deployed_with_all_that_waits(bench: Bench) -> None:
    """By the CDK, once."""
    bench.save(app="x = 2\n", orders="x = 2\n")
    assert bench.cloud.asked == [DEPLOYMENT]
    assert bench.said[0] == "app.py: cdk deploy --all …"
    assert bench.said[1].startswith("deployed in ")
    bench.save(users="x = 2\n")
    assert bench.cloud.asked == [DEPLOYMENT, "users"]


def test_a_deployment_waits_for_a_function_that_does_not_compile(bench: Bench) -> None:
    """It would deploy the broken file too."""
    bench.save(app="x = 2\n", orders=BROKEN)
    assert bench.cloud.asked == []
    assert bench.said[-1] == "deployment: waits until orders compiles"
    bench.save(orders="x = 2\n")
    assert bench.cloud.asked == [DEPLOYMENT]


def test_a_failed_deployment_is_told_and_the_next_save_is_deployed(bench: Bench) -> None:
    """What was saved with it is not lost."""
    bench.cloud.refusing[DEPLOYMENT] = DeploymentError("the migration failed")
    bench.save(app="x = 2\n", orders="x = 2\n")
    assert "the migration failed" in bench.said[-1]
    bench.save(users="x = 2\n")
    assert bench.cloud.asked == [DEPLOYMENT, "orders", "users"]


def test_code_that_does_not_start_is_shown_with_the_file_that_was_saved(bench: Bench) -> None:
    """Not with the copy that the environment has."""
    trace = "  File \"handler.py\", line 1, in <module>\n    x = y\nNameError: name 'y'"
    bench.cloud.refusing["orders"] = CodeError(trace)
    bench.save(orders="x = y\n")
    (shown,) = bench.said
    assert "orders: does not start, the last version that works keeps running" in shown
    assert f'File "{bench.project}/functions/orders/handler.py", line 1' in shown


def test_settings_that_cannot_be_read_do_not_end_the_watch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cdk.json is being edited; it is said why nothing was deployed."""
    monkeypatch.setattr(watch, "load_stage", lambda _: json.loads("{,"))
    bench.save(orders="x = 2\n")
    assert bench.cloud.asked == []
    assert "orders: not deployed, the last version that works keeps running" in bench.said[0]


def test_an_assembly_that_is_being_written_does_not_end_the_watch(bench: Bench) -> None:
    """What it would say of a file is not known: the whole app is deployed."""
    (bench.cloud.folder / "cdk" / "cdk.out" / "Stack.metadata.json").write_text("{")
    bench.save(orders="x = 2\n")
    assert bench.cloud.asked == [DEPLOYMENT]


def test_a_function_without_an_alias_is_deployed(bench: Bench) -> None:
    """No alias could move to another version."""
    bench.cloud.refusing["orders"] = NeedsDeploymentError("no alias")
    bench.save(orders="x = 2\n")
    assert bench.cloud.asked == ["orders", DEPLOYMENT]


def test_a_file_of_the_layer_is_of_the_layer(tmp_path: Path) -> None:
    """In this repository, which has it; a template of the app is of a deployment."""
    sources = Sources.read(tmp_path, tmp_path)
    (package, *_) = sources.layer
    assert sources.target(package / "lambda_pg" / "_errors.py") == THE_LAYER
    assert sources.target(package.parent / "build.py") == DEPLOYMENT


@pytest.fixture
def seen(tmp_path: Path) -> Callable[..., set[str]]:
    """Make a change between two looks, more during the wait; return the names that were seen."""

    def see(*made: Callable[[], object]) -> set[str]:
        nothing: list[Callable[[], object]] = [lambda: None]
        steps = iter([*made, *nothing * 9])  # then it would look for ever

        def sleep(_seconds: float) -> None:
            next(steps)()

        looks = files.changes(tmp_path, files.scan(tmp_path), sleep)
        return {path.name for path in next(looks)}

    return see


def save_as(path: Path, text: str) -> None:
    """Save by a rename, as many editors do."""
    partial = path.with_name(f"{path.name}.new")
    partial.write_text(text)
    partial.replace(path)


def test_a_save_by_rename_is_seen(tmp_path: Path, seen: Callable[..., set[str]]) -> None:
    """Also one that keeps size and time of change."""
    path = tmp_path / "handler.py"
    path.write_text("1")
    times = path.stat()

    def save() -> None:
        save_as(path, "2")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert seen(save) == {"handler.py"}


def test_files_that_are_saved_one_after_the_other_come_together(
    tmp_path: Path, seen: Callable[..., set[str]]
) -> None:
    """A save of all, a checkout of a branch."""
    names = [f"{number}.py" for number in range(3)]
    assert seen(*((tmp_path / name).touch for name in names)) == set(names)


def test_new_and_removed_files_are_seen(tmp_path: Path, seen: Callable[..., set[str]]) -> None:
    """Each changes what is deployed."""
    (tmp_path / "gone.py").touch()
    assert seen((tmp_path / "gone.py").unlink, (tmp_path / "new.py").touch) == {"gone.py", "new.py"}


def test_a_file_that_comes_and_goes_is_no_change(
    tmp_path: Path, seen: Callable[..., set[str]]
) -> None:
    """Some editors try whether they can write."""
    probe = tmp_path / "4913"
    assert seen(probe.touch, probe.unlink, lambda: None, (tmp_path / "a.py").touch) == {"a.py"}


@pytest.mark.parametrize(
    "name",
    [
        *(".git/index", "node_modules/a/b.js", "cdk.out/tree.json", "tests/test_a.py", "README.md"),
        *("functions/orders/test_handler.py", "handler.py~", ".handler.py.swp"),
    ],
)
def test_what_no_deployment_reads_is_not_looked_at(tmp_path: Path, name: str) -> None:
    """A save of a test or of documentation deploys nothing."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert files.scan(tmp_path) == {}


def test_a_folder_named_as_one_of_this_repository_is_looked_at_elsewhere(tmp_path: Path) -> None:
    """Another project's `tools` may be part of its app."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "a.py").touch()
    assert [path.name for path in files.scan(tmp_path)] == ["a.py"]
    (tmp_path / "lambda_pg_cdk").mkdir()
    assert files.scan(tmp_path) == {}


def test_what_was_saved_after_the_last_deployment_is_deployed_first(bench: Bench) -> None:
    """A watch that is started later begins with it."""
    deployed = bench.cloud.folder / "cdk" / "cdk.out" / "manifest.json"
    for path in bench.project.rglob("*.py"):
        os.utime(path, (1, 1))
    os.utime(deployed, (2, 2))
    os.utime(bench.project / "functions" / "orders" / "handler.py", (3, 3))
    watching = iter([True])

    def stop(_root: Path, _known: object) -> Iterator[set[Path]]:
        assert next(watching)
        yield from ()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "changes", stop)
        bench.watch.run()
    assert bench.cloud.asked == ["orders"]
