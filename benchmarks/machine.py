"""Describes the machine and versions of a measurement."""

import os
import platform
from importlib.metadata import distributions, version
from pathlib import Path

import psutil

from lambda_pg_cdk.local.install.installed import runtime_folder


def machine() -> dict[str, str | int]:
    """Describe processor, cores, memory and kernel."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
    }


def others(seconds: float = 3.0) -> float:
    """Return the percentage of all processors that is in use now, over some seconds."""
    return psutil.cpu_percent(seconds)


def packages(*names: str) -> dict[str, str]:
    """Name the versions of Python and of distributions."""
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def packages_in_a_function() -> dict[str, str]:
    """Name the versions of what a function of the local cloud runs."""
    folder = [str(runtime_folder())]
    runtime = {
        name: found.version
        for name in ("awslambdaric", "boto3")
        for found in distributions(name=name, path=folder)
    }
    return {**packages("psycopg"), **runtime}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
