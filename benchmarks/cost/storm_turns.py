"""Storm a cloud of the checkout that this runs in, one storm for each line of standard input.

python -P storm_turns.py ENVIRONMENTS, with the checkout as the working directory and in PYTHONPATH.
It answers each line with the processor milliseconds per first request, as JSON. `whole` is all
processes: environments, pooler, database, the cloud's own processes and the load. `simulator` is
the cloud's own processes and the load. It also runs in the older checkout of whole_request.py, so
it uses only what that has, and this version's accounting.
"""

import json
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from benchmarks.storm.rows import Row, our_driver
from benchmarks.storm.run import own_cloud, set_up

SETTLE = 2.0
"""Seconds after a storm, in which the cloud finishes its work."""


def accounting() -> ModuleType:
    """Load this version's accounting: that of an older checkout counts in ticks of 10 ms."""
    name = "accounting"
    spec = spec_from_file_location(name, Path(__file__).parents[1] / "storm" / f"{name}.py")
    assert spec is not None  # noqa: S101 - the file is there
    assert spec.loader is not None  # noqa: S101 - the file is there
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def usage() -> float:
    """Return the processor seconds of this process's control group since its creation."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if "cpuacct" in controllers.split(","):
            text = Path(f"/sys/fs/cgroup/cpuacct{path}/cpuacct.usage").read_text()
            return int(text) / 1e9
        if number == "0" and (stat := Path(f"/sys/fs/cgroup{path}/cpu.stat")).exists():
            return int(dict(map(str.split, stat.read_text().splitlines()))["usage_usec"]) / 1e6
    raise SystemExit("the control group of this process does not count processor time")


def main() -> None:
    """Run one storm for each line, measured from the first request to the last answer."""
    row = Row("lambda-pg", "lambda_pg", environments=int(sys.argv[1]))
    counts = accounting()
    with own_cloud({}, lambda _: None) as cloud:
        stage = set_up(cloud, lambda _: None)
        print("ready", flush=True)
        for _ in sys.stdin:
            cloud.environments(row.function, row.environments, row.start)
            parts = counts.Usage.of(cloud.status(), cloud.state.daemon).cpu
            load, whole = counts.own_seconds(), usage()
            summary = our_driver(stage.address(row), stage.token, row.environments)
            whole, load = usage() - whole, counts.own_seconds() - load
            now = counts.Usage.of(cloud.status(), cloud.state.daemon).cpu
            simulator = counts.simulator_seconds(vars(now.since(parts, load)))
            if summary.failed:
                raise SystemExit(f"{summary.failed} of {row.environments} requests failed")
            used = {"simulator": simulator, "whole": whole}
            each = {name: seconds * 1000 / row.environments for name, seconds in used.items()}
            print(json.dumps(each), flush=True)
            cloud.end_environments(row.function)
            time.sleep(SETTLE)


if __name__ == "__main__":
    main()
