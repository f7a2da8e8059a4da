r"""The storm from Locust: all users wait for the last one, then each sends one request.

    STORM_TOKEN=… STORM_PATH=/storm/lambda_pg/… STORM_OUTPUT=storm-by-locust.json \
        locust --locustfile benchmarks/storm/locust/locustfile.py --headless \
        --users 500 --spawn-rate 500 --host http://127.0.0.1:…

STORM_OUTPUT gets the outcome of each request: its status (0 without an answer) and the milliseconds
that Locust measured.
"""

import json
import os
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust import FastHttpUser, events, task
from locust.env import Environment

all_are_there = Event()
outcomes: list[tuple[int, float]] = []


class Caller(FastHttpUser):
    """One user, with one request."""

    network_timeout = 60.0
    connection_timeout = 60.0

    @task
    def look_up(self) -> None:
        """Wait for the others, send the request, and wait forever."""
        all_are_there.wait()
        token = os.environ["STORM_TOKEN"]
        self.client.get(os.environ["STORM_PATH"], headers={"Authorization": f"Bearer {token}"})
        Event().wait()


@events.spawning_complete.add_listener
def begin(**_: Any) -> None:
    """Release all users at the same moment."""
    all_are_there.set()


@events.init.add_listener
def count_requests(environment: Environment, **_: Any) -> None:
    """Record every outcome; the last one ends the run."""

    @environment.events.request.add_listener
    def take(response_time: float, response: Any, **_: Any) -> None:
        outcomes.append((response.status_code if response is not None else 0, response_time))
        if environment.runner and len(outcomes) == environment.runner.target_user_count:
            gevent.spawn(
                environment.runner.quit
            )  # in another greenlet: quit() ends all users, this one too


@events.quitting.add_listener
def write(environment: Environment, **_: Any) -> None:
    """Write the outcomes; exit with 0 although requests of a control failed."""
    Path(os.environ["STORM_OUTPUT"]).write_text(json.dumps(outcomes))
    environment.process_exit_code = 0
