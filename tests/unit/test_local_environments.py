"""Execution environments as real processes, with handlers written by the test."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.storm.accounting import Usage
from local import installed
from local.deployed import Function, Start
from local.environments.account import Account, UnknownFunctionError
from local.environments.environment import Outcome, State
from local.environments.fleet import Fleet, ThrottledError
from local.environments.launcher import Surroundings

HANDLER = """
import json, os, sys, time
from snapshot_restore_py import register_after_restore, register_before_snapshot
told = []
register_before_snapshot(lambda: told.append(("before", os.getpid())))
register_after_restore(lambda: told.append(("after", os.getpid())))
print("imported", flush=True)
def handler(event, context):
    if "sleep" in event: time.sleep(event["sleep"])
    if "exit" in event: os._exit(event["exit"])
    if "raise" in event: raise ValueError(event["raise"])
    if "import" in event:
        try: __import__(event["import"])
        except ImportError: return False
        return True
    return {"pid": os.getpid(), "told": told, "environ": dict(os.environ),
            "left": context.get_remaining_time_in_millis(), "arn": context.invoked_function_arn,
            "event": event}
"""

THREADED = """
import threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True, name="busy").start()
def handler(event, context): pass
"""


class Bench:
    """Makes fleets of functions in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.around = Surroundings(
            installed.runtime_folder(), folder, folder / "logs", {"AWS_REGION": "us-east-1"}
        )

    def function(self, source: str = HANDLER, **given: Any) -> Function:
        """Deploy a handler."""
        code = self.folder / f"code{len(list(self.folder.iterdir()))}"
        code.mkdir()
        (code / "handler.py").write_text(source)
        values: dict[str, Any] = {
            "name": "stack-fn",
            "folder": "fn",
            "arn": "arn:aws:lambda:us-east-1:000000000000:function:stack-fn",
            "handler": "handler.handler",
            "runtime": f"python{sys.version_info.major}.{sys.version_info.minor}",
            "timeout": 60.0,  # a cold start takes seconds on a busy machine
            "memory": 256,
            "code": code,
            "layers": (),
            "variables": {"COLOUR": "blue"},
            "log_group": "/aws/lambda/fn",
        }
        return Function(**{**values, **given})

    def fleet(self, source: str = HANDLER, **given: Any) -> Fleet:
        """Make a fleet of a handler."""
        return Fleet(self.function(source, **given), self.around, lambda: 0)

    @property
    def log(self) -> str:
        """What the function has printed."""
        return (self.folder / "logs" / "fn.log").read_text()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Where functions are deployed by hand."""
    return Bench(tmp_path)


def run(fleet: Fleet, work: Coroutine[Any, Any, Any]) -> Any:
    """Run a test's coroutine, and see to it that no process is left."""

    async def closing() -> Any:
        try:
            return await work
        finally:
            pids = fleet.pids
            await fleet.close()
            assert not any(map(is_running, pids))

    return asyncio.run(closing())


def is_running(pid: int) -> bool:
    """Tell whether a process is there, zombies aside: its parent has yet to look at those."""
    return psutil.pid_exists(pid) and state_of(pid) != psutil.STATUS_ZOMBIE


async def until(condition: Callable[[], bool]) -> None:
    """Poll until a condition holds, for at most twenty seconds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what happens outside of this process has no event
            await asyncio.sleep(0.01)


def read(outcome: Outcome) -> Any:
    """Parse a payload."""
    return json.loads(outcome.payload)


def state_of(pid: int) -> str:
    """Return a process's state, as psutil names it."""
    return psutil.Process(pid).status()


def test_a_cold_environment_serves_and_is_used_again(bench: Bench) -> None:
    """The second request meets the same process."""
    fleet = bench.fleet()

    async def work() -> None:
        one = read(await fleet.invoke(b'{"a": 1}'))
        two = read(await fleet.invoke(b"{}"))
        assert one["event"] == {"a": 1}
        assert one["pid"] == two["pid"]
        assert one["arn"] == fleet.function.arn
        assert 50_000 < one["left"] <= 60_000

    run(fleet, work())


def test_the_environment_holds_the_deployed_variables_and_lambdas_own(bench: Bench) -> None:
    """Nothing of the developer's shell but PATH comes through, and nothing of the project."""
    os.environ["LAMBDA_PG_TEST_CANARY"] = "leaked"
    fleet = bench.fleet()
    found = read(run(fleet, fleet.invoke(b"{}")))["environ"]
    del os.environ["LAMBDA_PG_TEST_CANARY"]
    assert found["COLOUR"] == "blue"
    assert found["AWS_LAMBDA_FUNCTION_NAME"] == "stack-fn"
    assert found["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "256"
    assert found["_HANDLER"] == "handler.handler"
    assert found["LAMBDA_TASK_ROOT"] == str(fleet.function.code)
    assert "LAMBDA_PG_TEST_CANARY" not in found


@pytest.mark.parametrize(
    ("module", "there"),
    [("boto3", True), ("awslambdaric", True), ("aiohttp", False), ("pytest", False)],
)
def test_only_the_runtimes_packages_can_be_imported(bench: Bench, module: str, there: bool) -> None:
    """A function that forgot a dependency fails here as it would on AWS."""
    fleet = bench.fleet()
    event = json.dumps({"import": module}).encode()
    assert read(run(fleet, fleet.invoke(event))) is there


def test_restored_environments_are_forks_that_ran_the_snapshot_hooks(bench: Bench) -> None:
    """The handler is imported once; before-snapshot runs there, after-restore in each fork."""
    fleet = bench.fleet()

    async def work() -> None:
        pids = await fleet.open(3, "restored")
        answers = [read(one) for one in await asyncio.gather(*(fleet.invoke(b"{}") for _ in pids))]
        assert sorted(answer["pid"] for answer in answers) == sorted(pids)
        for answer in answers:
            (before, template), (after, own) = answer["told"]
            assert (before, after) == ("before", "after")
            assert own == answer["pid"] != template
            assert answer["environ"]["AWS_LAMBDA_INITIALIZATION_TYPE"] == "snap-start"
        assert bench.log.count("imported") == 1

    run(fleet, work())


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (THREADED, "busy"),
        (
            "import socket\nkept = socket.socket()\ndef handler(event, context): pass",
            "connection",
        ),
        ("raise ValueError('broken at import')", "broken at import"),
    ],
    ids=["thread", "connection", "import"],
)
def test_what_no_snapshot_can_hold_is_refused(bench: Bench, source: str, reason: str) -> None:
    """A thread or a connection from the import would be shared or lost by every fork."""
    fleet = bench.fleet(source)
    with pytest.raises(RuntimeError, match=reason):
        run(fleet, fleet.open(2, "restored"))


def test_an_idle_environment_is_frozen_and_thaws_for_its_next_event(bench: Bench) -> None:
    """Its process is stopped between requests, as on AWS."""
    fleet = bench.fleet()

    async def work() -> None:
        pid = read(await fleet.invoke(b"{}"))["pid"]
        await until(lambda: state_of(pid) == psutil.STATUS_STOPPED)
        assert read(await fleet.invoke(b"{}"))["pid"] == pid

    run(fleet, work())


def test_a_function_that_raises_reports_the_error_and_lives_on(bench: Bench) -> None:
    """The payload is Lambda's error object."""
    fleet = bench.fleet()

    async def work() -> None:
        failed = await fleet.invoke(b'{"raise": "boom"}')
        assert failed.failure == "handled"
        assert read(failed)["errorMessage"] == "boom"
        assert (await fleet.invoke(b"{}")).failure is None
        assert len(fleet) == 1

    run(fleet, work())


def test_a_function_that_is_too_slow_is_ended(bench: Bench) -> None:
    """The environment is killed at the function's timeout, and a new one serves the next."""
    fleet = bench.fleet(timeout=0.5)

    async def work() -> None:
        outcome = await fleet.invoke(b'{"sleep": 30}')
        assert outcome.failure == "timeout"
        assert "Task timed out after 0.50 seconds" in read(outcome)["errorMessage"]
        assert "Task timed out" in bench.log

    run(fleet, work())


def test_a_process_that_exits_fails_its_request_only(bench: Bench) -> None:
    """The next request meets a new environment."""
    fleet = bench.fleet()

    async def work() -> None:
        outcome = await fleet.invoke(b'{"exit": 3}')
        assert (outcome.failure, read(outcome)["errorType"]) == ("exit", "Runtime.ExitError")
        assert (await fleet.invoke(b"{}")).failure is None

    run(fleet, work())


@pytest.mark.parametrize("start", ["cold", "restored"])
def test_the_processor_time_of_environments_that_have_ended_is_known(
    bench: Bench, start: Start
) -> None:
    """Benchmarks count it: those that time out are ended, and have cost the most."""
    source = "import time\ndef handler(event, context):\n while time.process_time() < 0.3: pass"
    fleet = bench.fleet(source)

    async def work() -> None:
        (pid,) = await fleet.open(1, start)
        await fleet.invoke(b"{}")
        before = functions_seconds()
        assert before >= 0.3
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not psutil.pid_exists(pid))
        assert functions_seconds() > before - 0.05  # of those that have ended, whole ticks count

    run(fleet, work())


def functions_seconds() -> float:
    """Return the processor time of all environments below this process."""
    status = {"pooler": {"tasks": []}, "postgres": {"pid": os.getpid()}}
    return Usage.of(status, os.getpid()).cpu.functions


def test_a_handler_that_cannot_be_imported_fails_with_its_error(bench: Bench) -> None:
    """The import's message reaches the caller of Invoke."""
    fleet = bench.fleet("import nothing_of_that_name")
    outcome = run(fleet, fleet.invoke(b"{}"))
    assert outcome.failure == "init"
    assert "nothing_of_that_name" in read(outcome)["errorMessage"]


def test_simultaneous_requests_get_an_environment_each(bench: Bench) -> None:
    """One environment serves one request at a time."""
    fleet = bench.fleet()

    async def work() -> None:
        answers = await asyncio.gather(*(fleet.invoke(b'{"sleep": 0.3}') for _ in range(3)))
        assert len({read(answer)["pid"] for answer in answers}) == 3

    run(fleet, work())


def test_requests_go_to_the_environment_used_last_or_are_spread(bench: Bench) -> None:
    """As on AWS the others stay idle; spread, each gets its turn before any gets another."""
    fleet = bench.fleet()

    async def used(times: int) -> list[int]:
        return [read(await fleet.invoke(b"{}"))["pid"] for _ in range(times)]

    async def work() -> None:
        pids = await fleet.open(3, "restored")
        assert len(set(await used(4))) == 1
        assert await fleet.open(3, "restored", spread=True) == []
        turn = await used(3)
        assert sorted(turn) == sorted(pids)
        await until(lambda: fleet.states()["frozen"] == 3)
        assert await used(3) == turn
        await fleet.open(3, "restored")
        assert len(set(await used(3))) == 1

    run(fleet, work())


def test_reserved_concurrency_throttles(bench: Bench) -> None:
    """With one reserved, the second simultaneous request is refused at once."""
    fleet = bench.fleet(reserved_concurrency=1)

    async def work() -> None:
        first = asyncio.ensure_future(fleet.invoke(b'{"sleep": 0.5}'))
        await asyncio.sleep(0)
        with pytest.raises(ThrottledError, match="reserved"):
            await fleet.invoke(b"{}")
        assert (await first).failure is None

    run(fleet, work())


def test_idle_environments_expire(bench: Bench) -> None:
    """After the idle time, and not before."""
    fleet = bench.fleet()

    async def work() -> None:
        await fleet.invoke(b"{}")
        fleet.expire(60)
        assert len(fleet) == 1
        fleet.expire(0)
        await until(lambda: not (len(fleet)))

    run(fleet, work())


def test_a_new_version_retires_the_old_one_and_lets_its_requests_finish(bench: Bench) -> None:
    """A request in flight gets the old code's answer, the next one the new code's."""
    account = Account(bench.around, 60)
    old = bench.function()
    new = bench.function("def handler(event, context): return 'new'")

    async def work() -> None:
        await account.update(old)
        first = asyncio.ensure_future(account.invoke("fn", b'{"sleep": 0.5}'))
        await asyncio.sleep(0.2)
        await account.update(new)
        assert read(await account.invoke("fn", b"{}")) == "new"
        assert "pid" in read(await first)
        await until(lambda: not (account.running() > 1))
        with pytest.raises(UnknownFunctionError, match="other"):
            await account.invoke("other", b"{}")
        await account.close()

    asyncio.run(work())


VERSION = """
import os
def handler(event, context):
    return [%r, context.function_version, context.invoked_function_arn, os.getpid()]
"""


def published(bench: Bench, code: str, version: str, alias: str = "") -> Function:
    """Make a version of a function, called by its number or by an alias."""
    arn = f"arn:aws:lambda:us-east-1:000000000000:function:stack-fn:{alias or version}"
    return bench.function(VERSION % code, version=version, arn=arn)


def test_a_version_that_is_called_by_its_number_runs_beside_the_one_that_serves(
    bench: Bench,
) -> None:
    """Its requests leave the environments of the other alone, and the name stays the alias's."""
    account = Account(bench.around, 60)

    async def call(name: str) -> list[Any]:
        return list(read(await account.invoke(name, b"{}")))

    async def work() -> None:
        served = published(bench, "one", "1", "live")
        await account.update(served)
        before = await call("stack-fn")
        assert before[:2] == ["one", "1"]
        assert before[2].endswith(":live")

        key = await account.update_version(published(bench, "two", "2"))
        assert (await call(key))[:2] == ["two", "2"]
        newest = bench.function(VERSION % "three")
        key = await account.update_version(newest)
        assert (await call(key))[:2] == ["three", "$LATEST"]
        assert await call("stack-fn") == before
        assert account.counts() == {"fn": 3}

        await account.keep_only(["stack-fn"])
        assert account.counts() == {"fn": 1}
        assert await call("stack-fn") == before
        await account.close()

    asyncio.run(work())


def test_the_version_that_serves_is_called_where_it_runs_already(bench: Bench) -> None:
    """By its number it needs no environments of its own, and its alias keeps its ARN."""
    account = Account(bench.around, 60)

    async def work() -> None:
        served = published(bench, "one", "1", "live")
        await account.update(served)
        first = read(await account.invoke("fn", b"{}"))
        same = replace(served, arn=served.arn.replace(":live", ":1"))
        assert await account.update_version(same) == "stack-fn"
        assert read(await account.invoke("fn", b"{}")) == first
        await account.close()

    asyncio.run(work())


def test_new_code_of_a_function_without_an_alias_is_called_by_its_name(bench: Bench) -> None:
    """As a deployment does that runs a migration: the older environments retire."""
    account = Account(bench.around, 60)

    async def work() -> None:
        await account.update(bench.function(VERSION % "old"))
        assert read(await account.invoke("fn", b"{}"))[0] == "old"
        assert await account.update_version(bench.function(VERSION % "new")) == "stack-fn"
        assert read(await account.invoke("fn", b"{}"))[0] == "new"
        await until(lambda: account.running() == 1)
        await account.close()

    asyncio.run(work())


def test_only_what_has_changed_is_restarted(bench: Bench) -> None:
    """A deployment of another function leaves an environment where it is."""
    account = Account(bench.around, 60)
    one = published(bench, "one", "1", "live")
    other = replace(published(bench, "other", "1", "live"), name="stack-other", folder="other")

    async def pids() -> list[int]:
        return [read(await account.invoke(name, b"{}"))[3] for name in ("fn", "other")]

    async def work() -> None:
        await account.update(one)
        await account.update(other)
        before = await pids()
        await account.update(one)
        changed = published(bench, "changed", "2", "live")
        await account.update(replace(changed, name="stack-other", folder="other"))
        await account.keep_only(["stack-fn", "stack-other"])
        after = await pids()
        assert (after[0] == before[0], after[1] == before[1]) == (True, False)
        await account.close()

    asyncio.run(work())


def test_the_state_of_every_environment_is_told(bench: Bench) -> None:
    """It starts, cold or restored, is busy with an event, or frozen until the next one."""
    account = Account(bench.around, 60)

    async def while_it_does(work: Coroutine[Any, Any, Any], state: State) -> None:
        task = asyncio.create_task(work)
        await until(lambda: account.states()["fn"][state] == 1)
        await task
        assert account.states() == {"fn": {"frozen": 1}}

    async def work() -> None:
        assert account.states() == {}
        await account.update(bench.function())
        assert account.states() == {"fn": {}}
        await while_it_does(account.open("fn", 1, "restored", spread=False), "restored")
        await while_it_does(account.invoke("fn", b'{"sleep": 0.3}'), "busy")
        await account.end("fn")
        await while_it_does(account.invoke("fn", b"{}"), "cold")
        await account.close()

    asyncio.run(work())


def test_a_killed_environment_is_noticed(bench: Bench) -> None:
    """After kill -9 of an idle environment: the next request starts another."""
    fleet = bench.fleet()

    async def work() -> None:
        pid = read(await fleet.invoke(b"{}"))["pid"]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not (len(fleet)))
        assert read(await fleet.invoke(b"{}"))["pid"] != pid

    run(fleet, work())
