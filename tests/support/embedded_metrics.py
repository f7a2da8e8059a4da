"""The rules of CloudWatch's embedded metric format, as far as the pooler's lines touch them."""

import json
import re
from typing import Any

import pytest


def assert_embedded_metrics(line: str) -> dict[str, Any]:
    """Hold a line against the rules of CloudWatch's embedded metric format; return it parsed."""
    assert "\n" not in line
    assert len(line.encode()) < 256 * 1024
    root: dict[str, Any] = json.loads(line, parse_constant=pytest.fail)
    assert set(root["_aws"]) == {"Timestamp", "CloudWatchMetrics"}
    assert isinstance(root["_aws"]["Timestamp"], int)
    for directive in root["_aws"]["CloudWatchMetrics"]:
        assert set(directive) == {"Namespace", "Dimensions", "Metrics"}
        assert re.fullmatch(r"[^\0-\037:][0-9A-Za-z._/#:-]{0,254}", directive["Namespace"])
        assert not directive["Namespace"].startswith("AWS/")
        for dimensions in directive["Dimensions"]:
            assert len(dimensions) <= 30
            for name in dimensions:
                assert isinstance(root[name], str)
                assert 1 <= len(root[name]) <= 1024
                assert root[name].isascii()
                assert root[name].strip()
        assert 1 <= len(directive["Metrics"]) <= 100
        names = [metric["Name"] for metric in directive["Metrics"]]
        assert len(set(names)) == len(names)
        for metric in directive["Metrics"]:
            assert set(metric) == {"Name", "Unit"}
            assert metric["Unit"] in {"Count", "Seconds", "Milliseconds", "Percent"}
            assert type(root[metric["Name"]]) in {int, float}
    return root
