"""Rules of a whole test session, loaded by tests/conftest.py.

- A test whose marker names something that this machine lacks (NEEDS) is skipped, with the reason.
- HRDC_REQUIRE=slurm,dali makes such a skip, and any other skip of a test with one of these markers, a failure: so CI
  cannot pass because something was missing. A skip for the lack of what is not required (a GPU, say) stays one.
- Files with slow tests run last, so that what fails soon fails first.
- Ctrl-C means what it means in a terminal: a shell starts what it puts in the background with SIGINT ignored, and so
  would be the programs that tests interrupt.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import signal
from collections.abc import Generator

import pytest

REQUIRED = "HRDC_REQUIRE"
_DAEMON_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
_CHEAP_FIRST = ("dali", "slurm", "slow")
"""Markers by cost: a file comes after those that only have markers to the left of its costliest one."""
_lacking = pytest.StashKey[str]()


def _lacks_slurm() -> str | None:
    missing = [name for name in ("munged", "slurmctld", "slurmd") if shutil.which(name, path=_DAEMON_PATH) is None]
    return f"{', '.join(missing)} not found; on Debian: apt-get install slurm-wlm munge" if missing else None


def _lacks_dali() -> str | None:
    found = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
    return None if found else "NVIDIA DALI is not installed"


def _lacks_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no NVIDIA GPU"


NEEDS = {
    name: functools.cache(check)
    for name, check in (("slurm", _lacks_slurm), ("dali", _lacks_dali), ("gpu", _lacks_gpu))
}
"""Marker: what says why its tests cannot run here, or None."""


def _required() -> set[str]:
    return {name.strip() for name in os.environ.get(REQUIRED, "").split(",")} - {""}


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if unknown := _required() - set(NEEDS):
        raise pytest.UsageError(f"{REQUIRED}: {', '.join(sorted(unknown))} unknown; allowed: {', '.join(NEEDS)}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    cost: dict[object, int] = {}
    for item in items:
        marked = [rank for rank, name in enumerate(_CHEAP_FIRST, 1) if item.get_closest_marker(name)]
        cost[item.path] = max(cost.get(item.path, 0), *marked, 0)
    items.sort(key=lambda item: cost[item.path])  # stable: a file's tests stay together, and so do its fixtures


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    lacking = {name: reason for name, lacks in NEEDS.items() if item.get_closest_marker(name) and (reason := lacks())}
    for name in sorted(lacking, key=_required().__contains__):  # what is not required first: it excuses the skip
        item.stash[_lacking] = name
        pytest.skip(lacking[name])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    required = sorted(name for name in _required() if item.get_closest_marker(name))
    excused = item.stash.get(_lacking, None) not in (None, *required)
    if report.skipped and required and not excused and not hasattr(report, "wasxfail"):
        _fail(report, f"{REQUIRED} has {', '.join(required)}, but this test was skipped")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and _required():
        _fail(
            report, f"{REQUIRED} is set, but this whole file was skipped: which markers its tests have cannot be known"
        )
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport, why: str) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{why}. {reason}"
