"""Sends a POST with one key many times at the same moment, each until it has succeeded.

It reads an order as JSON from its input, and prints how often each status came.
"""

import asyncio
import json
import sys
from collections import Counter
from typing import Any

from lambda_pg_cdk.local.http.load import session


async def send(order: dict[str, Any]) -> Counter[int]:
    """Send `order["count"]` requests at once; return the statuses of all answers."""
    statuses: Counter[int] = Counter()
    headers = {"Idempotency-Key": order["key"]}

    async with session(order["token"]) as client:

        async def one() -> None:
            status = 0
            while status != 201:
                async with client.post(order["url"], json=order["body"], headers=headers) as answer:
                    status = answer.status
                    statuses[status] += 1
                    wait = float(answer.headers.get("Retry-After", 0))
                await asyncio.sleep(wait)

        await asyncio.gather(*(one() for _ in range(order["count"])))
    return statuses


if __name__ == "__main__":
    print(json.dumps(asyncio.run(send(json.load(sys.stdin)))))
