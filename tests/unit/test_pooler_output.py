"""The supervisor's output: nothing waits for a reader, and what is missing is counted."""

import logging
import os
import re
import threading
from collections.abc import Iterator

import pytest

from lambda_pg_cdk.pgbouncer.output import LogHandler, Output

LINE = b"x" * 99 + b"\n"


class Reader:
    """The end of a pipe that is read when the test says so."""

    def __init__(self) -> None:
        """Open the pipe."""
        self.end, self.writer = os.pipe()
        self.text = b""

    def read_until(self, pattern: bytes) -> None:
        """Read until the text matches."""
        while not re.search(pattern, self.text):
            self.text += os.read(self.end, 65536)

    def close(self) -> None:
        """Close both ends."""
        for end in (self.end, self.writer):
            os.close(end)


@pytest.fixture
def reader() -> Iterator[Reader]:
    """A pipe."""
    made = Reader()
    yield made
    made.close()


def put_all(output: Output, count: int) -> bool:
    """Put lines in another thread; tell whether that ended within seconds."""

    def put() -> None:
        for _ in range(count):
            output.put(LINE)

    putting = threading.Thread(target=put, daemon=True)
    putting.start()
    putting.join(10)
    return not putting.is_alive()


def test_lines_arrive_in_order(reader: Reader) -> None:
    """As they were put, each once."""
    output = Output(reader.writer)
    for number in range(1000):
        output.put(b"%d\n" % number)
    output.finish(10)
    reader.read_until(rb"\n999\n")
    assert reader.text.split() == [b"%d" % number for number in range(1000)]


def test_nobody_waits_for_a_reader_and_every_missing_line_is_counted(reader: Reader) -> None:
    """The count of missing lines stands where they are missing."""
    output = Output(reader.writer, most=200_000)
    assert put_all(output, 10_000)
    reading = threading.Thread(target=reader.read_until, args=(rb"later\n",))
    reading.start()
    output.finish(10)
    output.put(b"later\n")
    reading.join()
    assert reader.text.startswith(LINE)
    assert re.search(rb"lines were dropped: nobody read them in time\nlater\n$", reader.text)
    missing = sum(
        int(count) for count in re.findall(rb"^(\d+) lines were", reader.text, re.MULTILINE)
    )
    assert reader.text.count(LINE) + missing == 10_000
    assert missing > 5000


def test_the_end_waits_for_what_is_left_but_not_for_ever(reader: Reader) -> None:
    """A pipe that nobody reads keeps no process alive."""
    output = Output(reader.writer)
    assert put_all(output, 5000)
    ending = threading.Thread(target=output.finish, args=(0.2,), daemon=True)
    ending.start()
    ending.join(10)
    assert not ending.is_alive()
    reader.read_until(rb"(x{99}\n){5000}")


def test_a_reader_that_has_gone_is_no_error() -> None:
    """Nobody reads any more; the writer goes on."""
    end, writer = os.pipe()
    os.close(end)
    output = Output(writer)
    assert put_all(output, 100)
    output.finish(10)
    os.close(writer)


def test_a_log_record_is_one_line(reader: Reader) -> None:
    """With its arguments, as logging formats it."""
    handler = LogHandler(Output(reader.writer))
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.handle(logging.makeLogRecord({"msg": "seen %d", "args": (3,), "levelname": "INFO"}))
    reader.read_until(rb"\n")
    assert reader.text == b"INFO seen 3\n"
