"""Checks of the data set on the login node, before anything is queued. Needs neither torch nor numpy."""

from __future__ import annotations

from hrdc_hpc.config import registry
from hrdc_hpc.config.schema import Data


def preflight(data: Data) -> None:
    """ValueError if the data set is plainly not there; fast, so that launch can ask before it submits."""
    file = registry.module("hrdc_hpc.data.datasets", data.dataset.name)
    file.preflight(data.dataset.options if data.dataset.options is not None else file.Options())
