"""Deploy what is saved: a function's code or the layer within seconds, all else by the CDK."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from lambda_pg_cdk.layer.build import BuildError, build_layer
from lambda_pg_cdk.local.cloud import (
    CloudError,
    CodeError,
    DeploymentError,
    LocalCloud,
    NeedsDeploymentError,
)
from lambda_pg_cdk.local.deployment.cdk import STAGE
from lambda_pg_cdk.local.development import files
from lambda_pg_cdk.local.development.sources import DEPLOYMENT, Sources, Target
from lambda_pg_cdk.stage.loading import load_stage
from lambda_pg_cdk.stage.sources import function_code, target_of

Say = Callable[[str], None]

_RUNS_ON: Final = "the last version that works keeps running"
_RELATIVE: Final = re.compile(r'(?m)^(\s*File ")(?!/)')


class Watch:
    """What has been saved and is not deployed yet, and how to deploy it.

    A file that does not compile keeps its function, or a whole deployment, waiting; other
    functions are deployed meanwhile.
    """

    def __init__(self, cloud: LocalCloud, project: Path, say: Say) -> None:
        """Watch a project that a running cloud has deployed; `say` gets each line for the user."""
        self._cloud = cloud
        self._project = project.resolve()
        self._say = say
        self._waiting: dict[Target, set[Path]] = {}
        """What has to be deployed, and the saved files that say so."""
        self._built: dict[Target, Path] = {}

    @property
    def _assembly(self) -> Path:
        return self._cloud.folder / "cdk" / "cdk.out"

    def run(self) -> None:
        """Watch for ever; first deploy what was saved after the last deployment."""
        known = files.scan(self._project)
        self._say(f"watching {len(known)} files in {self._project}; Ctrl-C ends it")
        if earlier := files.changed_since(known, self._deployed_at()):
            self.deploy(earlier)
        for changed in files.changes(self._project, known):
            self.deploy(changed)

    def _deployed_at(self) -> int:
        try:
            return (self._assembly / "manifest.json").stat().st_mtime_ns
        except FileNotFoundError:  # the cloud was started without a deployment
            return 0

    def deploy(self, changed: set[Path]) -> None:
        """Deploy what the changed files belong to, unless it does not compile."""
        sources = Sources.read(self._assembly, self._project)
        touched = set()
        for path in changed:
            touched.add(target := sources.target(path))
            self._waiting.setdefault(target, set()).add(path)
        broken = self._broken(touched, sources)
        if DEPLOYMENT not in self._waiting:
            for target in sorted(self._waiting.keys() - broken):
                if not self._update(target, sources):
                    self._waiting[DEPLOYMENT] = self._waiting.pop(target)
        if DEPLOYMENT not in self._waiting:
            return
        if broken:  # it would be deployed as well
            self._say(f"{DEPLOYMENT}: waits until {', '.join(sorted(broken))} compiles")
        else:
            self._deploy_all()

    def _broken(self, touched: set[Target], sources: Sources) -> set[Target]:
        """Return what does not compile; say why, where it was touched now."""
        broken = set()
        for target, paths in self._waiting.items():
            folder = sources.functions.get(target)
            problems = files.syntax_errors(files.python_files(folder) if folder else paths)
            if problems:
                broken.add(target)
            if target in touched:
                for problem in problems:
                    self._say(f"{target}: not deployed, {_RUNS_ON}:\n{problem}")
        return broken

    def _update(self, target: Target, sources: Sources) -> bool:
        """Deploy one function or the layer; return False if only a deployment can."""
        folder = sources.functions.get(target)
        try:
            said = self._run(target, folder)
        except NeedsDeploymentError:
            return False
        except CodeError as error:
            shown = _RELATIVE.sub(rf"\g<1>{folder}/", str(error)) if folder else str(error)
            said = f"does not start, {_RUNS_ON}:\n{shown}"
        except (BuildError, CloudError, OSError, ValueError, KeyError) as error:
            # ValueError and KeyError: cdk.json cannot be read, or is wrong.
            said = f"not deployed, {_RUNS_ON}: {error}"
        del self._waiting[target]
        self._say(f"{target}: {said}")
        return True

    def _run(self, target: Target, folder: Path | None) -> str:
        """Build and run new code; return what was done."""
        began = time.monotonic()
        built_for = target_of(load_stage(STAGE))
        if folder is None:
            code = build_layer(built_for)
            where = f"new layer in {', '.join(self._cloud.update_layer(code)) or 'no function'}"
        else:
            code = function_code(folder, (), built_for)
            self._cloud.update_code(target, code)
            where = "new code"
        self._supersede(target, code)
        return f"{where}, {time.monotonic() - began:.1f} s"

    def _supersede(self, target: Target, code: Path) -> None:
        """Let the cache drop what was built here before: each save builds another folder."""
        before = self._built.get(target)
        self._built[target] = code
        if before is not None and before != code:
            with suppress(FileNotFoundError):
                os.utime(before, (0, 0))

    def _deploy_all(self) -> None:
        """Deploy the whole app, as `redeploy` does."""
        names = ", ".join(self._named(sorted(self._waiting.get(DEPLOYMENT, ()))))
        self._say(f"{names}: cdk deploy --all …")
        began = time.monotonic()
        try:
            self._cloud.deploy(app=self._project)
        except DeploymentError as error:
            # What else was saved waits for the next save: it may need what was not deployed.
            self._waiting.pop(DEPLOYMENT, None)
            self._say(f"not deployed, {_RUNS_ON}: {error}")
            return
        self._waiting.clear()
        self._say(f"deployed in {time.monotonic() - began:.1f} s")

    def _named(self, paths: list[Path]) -> Iterator[str]:
        yield from (str(path.relative_to(self._project)) for path in paths[:3])
        if len(paths) > 3:
            yield f"{len(paths) - 3} more"
