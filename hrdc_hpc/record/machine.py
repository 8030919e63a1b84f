"""The machine and the versions that a measurement was made with. Torch-free; names no path, user or host."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import Any

from hrdc_hpc.record import manifest

_PACKAGES = ("torch", "torchvision", "triton", "timm", "numpy", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
_NOISE = re.compile(
    r"\((?:r|tm)\)|@.*|\d+-core\b.*|\b(?:nvidia|tesla|geforce|amd|intel|cpu|processor|gpu|\d+gb|hbm\w*|sxm\w*|virtual)\b"
)


def describe() -> dict[str, Any]:
    """Return date (UTC), processor, usable cores, GPUs, versions and commit, as plain values."""
    told = manifest.collect([])
    gpus, source = told["gpus"], told["source"]
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime(told["time"])),
        "cpu": told["cpu"]["model"],
        "cores": len(os.sched_getaffinity(0)),
        "gpus": gpus if isinstance(gpus, list) else [],
        "python": told["python"]["version"],
        "packages": concerned(told["packages"]),
        "commit": source["sha"],
        "changed": bool(source.get("diff") or source.get("untracked")),
    }


def concerned(packages: Mapping[str, str]) -> dict[str, str]:
    """Return the versions, by name, of the packages that a measurement depends on."""
    return {name: version for name, version in packages.items() if name in _PACKAGES or "nvidia-dali" in name}


def short_name(described: dict[str, Any]) -> str:
    """Return the name of a machine in a record's file name: 'epyc-2core', 'h200', '8x-h100'."""
    gpus = described["gpus"]
    if gpus:
        number = f"{len(gpus)}x-" if len(gpus) > 1 else ""
        return number + _slug(gpus[0]["name"])
    return f"{_slug(described['cpu'])}-{described['cores']}core"


def _slug(name: str) -> str:
    words = re.findall(r"[a-z0-9]+", _NOISE.sub(" ", name.lower()))
    return "-".join(words) or "machine"


def sentence(described: dict[str, Any]) -> str:
    """Return hardware, versions and commit in one sentence for a record."""
    gpus = ", ".join(gpu["name"] for gpu in described["gpus"]) or "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in described["packages"].items())
    commit = (described["commit"] or "unknown")[:7] + (" with changes" if described["changed"] else "")
    return (
        f"{described['cores']} cores of {described['cpu']}; {gpus}. Python {described['python']}, {versions}."
        f" Commit {commit}, {described['date']}."
    )
