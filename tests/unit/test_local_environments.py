"""Execution environments as real processes, with handlers written by the test."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import psutil
import pytest

from benchmarks.storm.accounting import Usage
from lambda_pg_cdk.local.deployment.deployed import Function, Start
from lambda_pg_cdk.local.environments.account import PRIVATE_BYTES, Account, UnknownFunctionError
from lambda_pg_cdk.local.environments.bootstrap import connect_patiently
from lambda_pg_cdk.local.environments.environment import Environment, State
from lambda_pg_cdk.local.environments.fleet import CodeError, Fleet, ThrottledError
from lambda_pg_cdk.local.environments.invocation import Outcome
from lambda_pg_cdk.local.environments.launcher import LaunchContext
from lambda_pg_cdk.local.install import installed

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


CONNECTED = """
import socket
kept = socket.socket()
def handler(event, context): pass
"""


class Bench:
    """Makes fleets of functions in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context = LaunchContext(
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
        return Fleet(self.function(source, **given), self.context, lambda _start: None)

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
        (CONNECTED, "connection"),
        ("raise ValueError('broken at import')", "broken at import"),
    ],
    ids=["thread", "connection", "import"],
)
def test_a_snapshot_that_cannot_be_taken_is_told_to_who_opens_environments(
    bench: Bench, source: str, reason: str
) -> None:
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


@pytest.mark.parametrize("start", ["cold", "restored"])
def test_a_handler_that_cannot_be_imported_fails_with_its_error(bench: Bench, start: Start) -> None:
    """The import's message reaches the caller of Invoke."""
    fleet = bench.fleet("import nothing_of_that_name")
    fleet.start = start
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
        await fleet.expire(60)
        assert len(fleet) == 1
        await fleet.expire(0)
        await until(lambda: not (len(fleet)))

    run(fleet, work())


def test_a_new_version_retires_the_old_one_and_lets_its_requests_finish(bench: Bench) -> None:
    """A request in flight gets the old code's answer, the next one the new code's."""
    account = Account(bench.context, 60)
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
    account = Account(bench.context, 60)

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
    """Called by its number it uses the same environments, and its alias keeps its ARN."""
    account = Account(bench.context, 60)

    async def work() -> None:
        served = published(bench, "one", "1", "live")
        await account.update(served)
        first = read(await account.invoke("fn", b"{}"))
        same = replace(served, arn=served.arn.replace(":live", ":1"))
        assert await account.update_version(same) == "stack-fn"
        assert read(await account.invoke("fn", b"{}")) == first
        await account.close()

    asyncio.run(work())


@pytest.mark.parametrize("start", ["cold", "restored"])
def test_a_version_that_was_tried_out_serves_without_another_start(
    bench: Bench, start: Start
) -> None:
    """Requests run the older one until it starts; its environment serves the first of them."""
    account = Account(bench.context, 60, start)

    async def work() -> None:
        await account.update(published(bench, "one", "1", "live"))
        assert read(await account.invoke("fn", b"{}"))[0] == "one"
        tried = published(bench, "two", "2")
        await account.try_out(tried)
        assert read(await account.invoke("fn", b"{}"))[0] == "one"
        pids = set(account.find("stack-fn:2").pids)
        await account.update(replace(tried, arn=tried.arn.replace(":2", ":live")))
        code, version, arn, pid = read(await account.invoke("fn", b"{}"))
        assert (code, version, arn.rpartition(":")[2]) == ("two", "2", "live")
        assert pid in pids
        await until(lambda: account.running() == 1)
        await account.keep_only(["stack-fn"])
        assert account.counts() == {"fn": 1}
        await account.close()

    asyncio.run(work())


@pytest.mark.parametrize("start", ["cold", "restored"])
@pytest.mark.parametrize(
    ("source", "cause"),
    [("x = undefined\n", "NameError: name 'undefined'"), ("import os\nos._exit(3)\n", "ended")],
    ids=["raises", "exits"],
)
def test_a_version_that_does_not_start_is_told_and_leaves_nothing(
    bench: Bench, start: Start, source: str, cause: str
) -> None:
    """With its traceback, which names the function's file; the older one serves on."""
    account = Account(bench.context, 60, start)

    async def work() -> None:
        await account.update(published(bench, "one", "1", "live"))
        with pytest.raises(CodeError) as raised:
            await account.try_out(bench.function(source, version="2"))
        assert cause in str(raised.value)
        if "undefined" in source:
            assert 'File "handler.py", line 1' in str(raised.value)
        assert read(await account.invoke("fn", b"{}"))[0] == "one"
        assert account.counts() == {"fn": 1}
        assert not account.has("stack-fn:2")
        await account.close()

    asyncio.run(work())


def test_a_version_that_no_snapshot_can_hold_is_tried_out_cold(bench: Bench) -> None:
    """It works on AWS: it is no reason to refuse the code."""
    account = Account(bench.context, 60)

    async def work() -> None:
        await account.try_out(bench.function(THREADED, version="2"))
        (fleet,) = [account.find("stack-fn:2")]
        assert fleet.held == {"cold": 1, "restored": 0}
        await account.close()

    asyncio.run(work())


def test_new_code_of_a_function_without_an_alias_is_called_by_its_name(bench: Bench) -> None:
    """As a deployment does that runs a migration: the older environments retire."""
    account = Account(bench.context, 60)

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
    account = Account(bench.context, 60)
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


def test_the_state_of_every_environment_is_counted(bench: Bench) -> None:
    """It starts, cold or restored, is busy with an event, or frozen until the next one."""
    account = Account(bench.context, 60)

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
        await while_it_does(account.invoke("fn", b"{}"), "restored")
        await account.end("fn")
        account.start_on_demand("fn", "cold")
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


SLOW = """
import os, time
with open({counter!r}, "a") as file: file.write("imported\\n")
time.sleep(0.5)
def handler(event, context): return os.getpid()
"""


def slow(bench: Bench) -> tuple[str, Callable[[], int]]:
    """Write a handler whose import takes a while, and return how often it was imported."""
    counter = bench.folder / "counter"
    return SLOW.format(counter=str(counter)), lambda: counter.read_text().count("imported")


def templates() -> list[psutil.Process]:
    """The template processes of this test: started by it, with that word."""
    children = psutil.Process().children()
    return [each for each in children if is_running(each.pid) and "template" in each.cmdline()]


def test_a_request_that_finds_no_free_environment_starts_a_restored_one(bench: Bench) -> None:
    """However many come at once, the handler is imported once, and each gets a fork."""
    fleet = bench.fleet()

    async def work() -> None:
        event = b'{"sleep": 0.5}'
        answers = [read(one) for one in await asyncio.gather(*map(fleet.invoke, [event] * 20))]
        assert len({answer["pid"] for answer in answers}) == 20
        assert {len(answer["told"]) for answer in answers} == {2}  # both hooks
        assert bench.log.count("imported") == 1

    run(fleet, work())


def test_cold_starts_are_asked_for_by_name(bench: Bench) -> None:
    """Then each environment imports the handler for itself, without SnapStart's hooks."""
    fleet = bench.fleet()
    fleet.start = "cold"

    async def work() -> None:
        event = b'{"sleep": 0.5}'
        answers = [read(one) for one in await asyncio.gather(*map(fleet.invoke, [event] * 2))]
        kinds = {answer["environ"]["AWS_LAMBDA_INITIALIZATION_TYPE"] for answer in answers}
        assert (kinds, [answer["told"] for answer in answers]) == ({"on-demand"}, [[], []])
        assert bench.log.count("imported") == 2

    run(fleet, work())


@pytest.mark.parametrize("source", [THREADED, CONNECTED], ids=["thread", "connection"])
def test_a_function_that_no_snapshot_can_hold_starts_cold(bench: Bench, source: str) -> None:
    """It works on AWS, so it works here; its log has the reason, once."""
    fleet = bench.fleet(source)

    async def work() -> None:
        for _ in range(2):
            outcomes = await asyncio.gather(*(fleet.invoke(b"{}") for _ in range(3)))
            assert [outcome.failure for outcome in outcomes] == [None] * 3
            assert bench.log.count("starts cold from now on") == 1
        assert fleet.held["restored"] == 0 < fleet.held["cold"]

    run(fleet, work())


def test_an_import_that_fails_is_tried_once_for_all_that_wait(bench: Bench) -> None:
    """Each of them gets its error, and the next request tries again."""
    source, imported = slow(bench)
    fleet = bench.fleet(source.replace("def handler", "raise ValueError('no')\ndef handler"))

    async def work() -> None:
        for times in (1, 2):
            outcomes = await asyncio.gather(*(fleet.invoke(b"{}") for _ in range(5)))
            assert {outcome.failure for outcome in outcomes} == {"init"}
            assert {read(outcome)["errorMessage"] for outcome in outcomes} == {"no"}
            assert {read(outcome)["errorType"] for outcome in outcomes} == {"ValueError"}
            assert imported() == times
        assert len(fleet) == 0

    run(fleet, work())


def test_a_template_process_that_has_died_is_replaced(bench: Bench) -> None:
    """Whether it died between two requests, or with an order that it had not carried out."""
    fleet = bench.fleet()

    async def work() -> None:
        assert (await fleet.invoke(b"{}")).failure is None
        (first,) = templates()
        first.suspend()
        both = [asyncio.ensure_future(fleet.invoke(b'{"sleep": 0.5}')) for _ in range(2)]
        await until(lambda: fleet.states() == {"busy": 1, "restored": 1})
        first.kill()
        assert [(await each).failure for each in both] == [None, None]
        (second,) = templates()
        assert (second.pid != first.pid, len(fleet)) == (True, 2)
        second.kill()
        await until(lambda: not templates())
        both = [asyncio.ensure_future(fleet.invoke(b'{"sleep": 0.5}')) for _ in range(3)]
        assert [(await each).failure for each in both] == [None, None, None]
        assert len(fleet) == 3

    run(fleet, work())


def test_a_machine_without_room_for_a_process_throttles(bench: Bench) -> None:
    """As Lambda does at its limit; what runs already serves on."""
    source = f"import os\nfork, left = os.fork, [1]\n{HANDLER}"
    full = "def once():\n    if left: return left.pop() and fork()\n    raise OSError('full')\n"
    fleet = bench.fleet(f"{source}\n{full}\nos.fork = once\n")

    async def work() -> None:
        first = asyncio.ensure_future(fleet.invoke(b'{"sleep": 0.5}'))
        await until(lambda: fleet.states()["busy"] == 1)
        with pytest.raises(ThrottledError, match="full"):
            await fleet.invoke(b"{}")
        assert (await first).failure is None
        assert (await fleet.invoke(b"{}")).failure is None
        assert len(fleet) == 1

    run(fleet, work())


def test_a_version_that_retires_while_its_template_is_made_answers_what_waits(
    bench: Bench,
) -> None:
    """Its requests are served by its own code, and then nothing of it is left."""
    source, imported = slow(bench)
    fleet = bench.fleet(source)

    async def work() -> None:
        outcomes = [asyncio.ensure_future(fleet.invoke(b"{}")) for _ in range(2)]
        await until(lambda: bool(templates()))
        await fleet.retire()
        assert [(await outcome).failure for outcome in outcomes] == [None, None]
        assert imported() == 1
        await until(lambda: not len(fleet) and not templates())

    run(fleet, work())


def test_two_starts_that_end_at_the_same_time_end_the_template(bench: Bench) -> None:
    """The second one ends it, though the loop has not yet called back for the first one."""
    fleet = bench.fleet()
    launcher = fleet._launcher = AsyncMock()
    launcher.write_log = Mock()
    launcher.start.side_effect = OSError("no process")

    async def work() -> None:
        outcomes = [asyncio.ensure_future(fleet.invoke(b"{}")) for _ in range(2)]
        await asyncio.sleep(0)  # both have begun to start an environment
        await fleet.retire()
        assert [(await outcome).failure for outcome in outcomes] == ["init", "init"]
        assert launcher.close.await_count == 1

    run(fleet, work())


def test_a_caller_that_gives_up_leaves_an_environment_that_comes_up(bench: Bench) -> None:
    """As on AWS: the event runs on behind an API that has answered, and the next one is warm."""
    source, imported = slow(bench)
    fleet = bench.fleet(source)

    async def work() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await fleet.invoke(b"{}")
        await until(lambda: fleet.states() == {"frozen": 1})
        assert read(await fleet.invoke(b"{}")) in fleet.pids
        assert (imported(), len(fleet)) == (1, 1)

    run(fleet, work())


def test_closing_while_a_template_is_made_leaves_no_process(bench: Bench) -> None:
    """The requests that waited for it learn that the environment is gone."""
    source, _ = slow(bench)
    fleet = bench.fleet(source)

    async def work() -> None:
        waiting = asyncio.ensure_future(fleet.invoke(b"{}"))
        await until(lambda: bool(templates()))
        await fleet.close()
        assert (await waiting).failure == "exit"
        assert (len(fleet), templates()) == (0, [])

    run(fleet, work())


def test_a_template_ends_when_nothing_has_used_it_for_long(bench: Bench) -> None:
    """What its import has read, a secret perhaps, does not serve new environments for ever."""
    fleet = bench.fleet()

    async def work() -> None:
        assert (await fleet.invoke(b"{}")).failure is None
        await fleet.expire(60)
        assert len(templates()) == 1
        await fleet.expire(0)
        await until(lambda: not len(fleet))
        await fleet.expire(0)
        await until(lambda: not templates())
        assert (await fleet.invoke(b"{}")).failure is None

    run(fleet, work())


def test_a_process_that_comes_too_late_is_ended(bench: Bench) -> None:
    """Its environment has ended while the template process forked."""

    async def work() -> None:
        environment = Environment("restored", lambda _: None, lambda _: None)
        await environment.listen()
        environment.kill()
        process = await asyncio.create_subprocess_exec("sleep", "60")
        environment.watch(process.pid)
        assert await asyncio.wait_for(process.wait(), 5) == -signal.SIGKILL

    asyncio.run(work())


def test_an_environment_that_asks_before_its_process_is_known_is_frozen(bench: Bench) -> None:
    """The template tells the process id on another way than the environment asks for work."""

    async def work() -> None:
        environment = Environment("restored", lambda _: None, lambda _: None)
        await environment.listen()
        environment.ask_next(lambda _: None)
        process = await asyncio.create_subprocess_exec("sleep", "60", process_group=0)
        environment.watch(process.pid)
        await until(lambda: state_of(process.pid) == psutil.STATUS_STOPPED)
        environment.kill()
        await environment.over.wait()
        await process.wait()

    asyncio.run(work())


def two_functions(bench: Bench) -> list[Function]:
    """Deploy the same handler under two names."""
    one = bench.function()
    return [one, replace(one, name="stack-other", folder="other")]


def test_idle_environments_do_not_count_as_concurrency(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lambda's limit is of events that run at the same time, in all functions together."""
    monkeypatch.setattr("lambda_pg_cdk.local.environments.account.CONCURRENCY", 2)
    account = Account(bench.context, 60)

    async def work() -> None:
        for function in two_functions(bench):
            await account.update(function)
        await account.open("other", 2, "restored", spread=False)
        busy = [asyncio.ensure_future(account.invoke("fn", b'{"sleep": 0.5}')) for _ in range(2)]
        await until(lambda: account.states()["fn"]["busy"] == 2)
        with pytest.raises(ThrottledError, match="all 2 environments"):
            await account.invoke("fn", b"{}")
        assert [(await each).failure for each in busy] == [None, None]
        await account.close()

    asyncio.run(work())


def test_where_memory_is_short_the_longest_idle_environment_makes_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function that was busy once does not keep others from running; busy ones stay."""
    monkeypatch.setattr("lambda_pg_cdk.local.environments.account._AT_LEAST", 2)
    account = Account(bench.context, 60, memory=2 * PRIVATE_BYTES["restored"])

    async def work() -> None:
        for function in two_functions(bench):
            await account.update(function)
        await account.open("other", 2, "restored", spread=False)
        busy = [asyncio.ensure_future(account.invoke("fn", b'{"sleep": 1}')) for _ in range(2)]
        await until(lambda: account.states()["fn"]["busy"] == 2)
        await until(lambda: account.counts() == {"fn": 2, "other": 0})
        with pytest.raises(ThrottledError, match="2 environments use all"):
            await account.invoke("other", b"{}")
        assert [(await each).failure for each in busy] == [None, None]
        assert (await account.invoke("other", b"{}")).failure is None
        await until(lambda: account.counts() == {"fn": 1, "other": 1})
        await account.close()

    asyncio.run(work())


def test_a_bound_below_lambdas_is_told_with_its_reason(bench: Bench) -> None:
    """Half of the memory, over what an environment of that kind needs."""
    assert Account(bench.context, 60, memory=1 << 40).limit_reason() is None
    few = Account(bench.context, 60, memory=100 * PRIVATE_BYTES["restored"])
    assert (few.limit_reason() or "").startswith("at most 100 environments")
    cold = Account(bench.context, 60, "cold", memory=100 * PRIVATE_BYTES["cold"])
    assert "a cold one needs 64 MB" in (cold.limit_reason() or "")


class Native:
    """awslambdaric's native half: fails as often as asked, each time after `seconds`."""

    def __init__(self, failures: int, seconds: float) -> None:
        self.asked = 0
        self._failures, self._seconds = failures, seconds

    def next(self) -> str:
        self.asked += 1
        if self.asked <= self._failures:
            time.sleep(self._seconds)
            raise RuntimeError("Failed to get next")
        return "an event"


def test_an_environment_that_had_no_processor_for_a_second_connects_again() -> None:
    """The runtime client's own second is over before the process has run: 5 of 500 at load 50."""
    starved = Native(2, 1.0)
    connect_patiently(starved)
    assert (starved.next(), starved.asked) == ("an event", 3)


def test_an_environment_whose_cloud_is_gone_ends() -> None:
    """A refused connection fails at once; so does a connection that breaks later."""
    refused = Native(1, 0)
    connect_patiently(refused)
    with pytest.raises(RuntimeError):
        refused.next()
    broken = Native(0, 0)
    connect_patiently(broken)
    assert broken.next() == "an event"
    broken._failures, broken._seconds = 9, 1.0
    with pytest.raises(RuntimeError):
        broken.next()
    assert broken.asked == 2
