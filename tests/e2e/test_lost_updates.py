"""Two hundred edits of one user that all have read the same version."""

import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks.once.audit import audited, changes, dsn_of
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.caller import Answer, call

EDITS = 200
AT_ONCE = 40
READ_AGAIN = 2
"""How often every second client reads again after 412; the others give up."""

Call = Callable[..., Answer]


def edit(request: Call, path: str, read: Answer, statuses: Counter[int], again: int) -> None:
    """Add one to the number in the name, as a client that has read it."""
    etag: Mapping[str, str] = {"If-Match": read.headers["etag"]}
    name = f"edit {number_in(read) + 1}"
    answer = request("PATCH", path, body={"name": name}, headers=etag)
    statuses[answer.status] += 1
    if answer.status == 412 and again:
        edit(request, path, request("GET", path), statuses, again - 1)


def edit_blindly(request: Call, path: str, read: Answer, statuses: Counter[int]) -> None:
    """Do the same without If-Match."""
    name = f"edit {number_in(read) + 1}"
    statuses[request("PATCH", path, body={"name": name}).status] += 1


def number_in(read: Answer) -> int:
    """Return how many edits the name counts."""
    return int(read.json()["name"].removeprefix("edit "))


def edited(cloud: LocalCloud, with_etags: bool) -> tuple[Counter[int], Answer, int]:
    """Have all clients read a new user, and then edit it.

    Returns their statuses, the user as it is then, and how often the database changed it.
    """
    request = partial(call, cloud.url, token=cloud.token(str(uuid.uuid4())))
    path = request("POST", "/users", body={"name": "edit 0"}).headers["location"]
    cloud.environments("users", AT_ONCE)
    statuses: Counter[int] = Counter()
    with audited(dsn_of(cloud)), ThreadPoolExecutor(AT_ONCE) as pool:
        reads = list(pool.map(lambda _: request("GET", path), range(EDITS)))
        jobs = [
            pool.submit(edit, request, path, read, statuses, READ_AGAIN * (number % 2))
            if with_etags
            else pool.submit(edit_blindly, request, path, read, statuses)
            for number, read in enumerate(reads)
        ]
        for job in jobs:
            job.result()
        recorded = len(changes(dsn_of(cloud)))
    return statuses, request("GET", path), recorded


def test_as_many_edits_as_succeed_are_there(cloud: LocalCloud) -> None:
    """Each 200 is a version and counts in the name; every other edit is a 412."""
    statuses, last, recorded = edited(cloud, with_etags=True)
    assert set(statuses) == {200, 412}
    assert statuses.total() >= EDITS
    assert recorded == number_in(last) == statuses[200] > 1
    assert last.headers["etag"] == f'"{1 + statuses[200]}"'


def test_without_if_match_edits_are_lost(cloud: LocalCloud) -> None:
    """All succeed, and the name has counted only one of them: the control."""
    statuses, last, recorded = edited(cloud, with_etags=False)
    assert statuses == {200: EDITS}
    assert recorded == EDITS
    assert number_in(last) == 1
