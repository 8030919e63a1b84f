"""torch, CUDA and DALI tried out, in a process of their own that may hang or crash. Torch-free itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from hrdc_hpc.cluster.checkup.finding import Finding, Role, ok, problem, warning
from hrdc_hpc.record import manifest

_PATIENCE_S = 180
"""torch and DALI on a cold network file system take a minute."""
_MEND = "pip install -c constraints.txt '.[train]' in the environment that jobs run in"


def check(role: Role) -> Iterator[Finding]:
    """Yield findings on what a rank imports first; each stage that was not reached is one."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hrdc_hpc.cluster.checkup.probe"],
            capture_output=True, text=True, timeout=_PATIENCE_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        out, err, how = done.stdout, done.stderr, f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        out, err = (text.decode() if isinstance(text, bytes) else text or "" for text in (error.stdout, error.stderr))
        how = f"not done after {_PATIENCE_S} s"
    told: dict[str, dict[str, Any]] = {}
    for line in out.splitlines():
        if line.startswith("{"):
            told |= json.loads(line)
    for stage, judge in (("torch", _torch), ("dali", _dali)):
        if stage in told:
            yield judge(told[stage], role)
        else:
            last = err.strip().splitlines()[-1:] or ["no output"]
            yield problem(stage, f"{how}: {last[0]}", "training would end the same way", _MEND)


def _torch(told: Mapping[str, Any], _role: Role) -> Finding:
    if "error" in told:
        return problem("torch", told["error"], "no rank can start", _MEND)
    found = f"{told['version']}, imported in {told['seconds']:.1f} s"
    if told["devices"]:
        return ok(
            "torch", f"{found}, CUDA {told['cuda']}, {', '.join(told['devices'])}: a product of matrices is right"
        )
    gpus = manifest.gpus()
    if isinstance(gpus, list) and gpus:
        driver = gpus[0]["driver_version"]
        why = told.get("cuda_error") or "torch was built without CUDA"
        return problem(
            "torch", f"{found}, built for CUDA {told['cuda']}; no GPU usable under driver {driver}: {why}",
            "training would stop, or use the CPU", "a newer driver, or torch built for an older CUDA",
        )  # fmt: skip
    return ok("torch", f"{found}, on the CPU")


def _dali(told: Mapping[str, Any], role: Role) -> Finding:
    if "error" in told:
        level = warning if role == "login" else problem
        return level("dali", told["error"], "encoded images (JPEG, PNG) cannot be decoded", _MEND)
    return ok("dali", f"{told['version']}, decodes a JPEG on the {told['device']}, {told['seconds']:.1f} s")
