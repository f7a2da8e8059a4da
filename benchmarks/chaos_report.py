"""Draw the rows of chaos as Markdown."""

from typing import Any

from benchmarks.report import origin

HEAD = (
    "| fault | lasted | requests | failed: reads, writes, notes | unknown notes | longest gap "
    "| back after | acknowledged | lost | duplicated |"
)


def chaos_table(result: dict[str, Any]) -> str:
    """Draw one line for each row, and what they were measured on."""
    lines = [HEAD, "|---|" + "---:|" * 9]
    lines += [_line(row) for row in result["rows"]]
    control = result["control"]
    caption = (
        f"{result['clients']} clients, checkout timeout {result['checkout_timeout']} s, seed "
        f"{result['seed']} of the random sequence. The control ({control['name']}) failed "
        f"{control['failed']} of {control['requests']} requests.{_herd(result)} {origin(result)}"
    )
    return "\n".join([*lines, "", caption])


def _herd(result: dict[str, Any]) -> str:
    """Say how many connections came in one second, where they were counted."""
    return "".join(
        f" {row['title']}: at most {row['client_connects']} client and {row['server_connects']} "
        f"server connections were opened in one second; allowed are "
        f"{row['goal']['client_connects']} and {row['goal']['server_connects']}."
        for row in result["rows"]
        if row["goal"]["client_connects"] is not None
    )


def _line(row: dict[str, Any]) -> str:
    failed = ", ".join(str(row[f"failed_{kind}"]) for kind in ("reads", "writes", "notes"))
    title = f"**{row['title']}: missed**" if row["missed"] else row["title"]
    back = "never" if row["recovery"] is None else f"{row['recovery']:.2f} s"
    return (
        f"| {title} | {row['ended'] - row['began']:.1f} s | {row['requests']} | {failed} "
        f"| {row['unknown_notes']} | {row['longest_gap']:.2f} s | {back} "
        f"| {row['acknowledged']} | {row['lost']} | {row['duplicated']} |"
    )
