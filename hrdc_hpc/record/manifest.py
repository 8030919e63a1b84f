"""What a run was made with: versions, source, machine, command. Torch-free, and it imports none of what it lists."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hrdc_hpc

_DIFF_LIMIT = 1_000_000
"""Characters of a source diff that are kept."""
_PATIENCE_S = 10
"""For git and nvidia-smi, which can hang on a sick file system or driver."""


def collect(command: Sequence[str]) -> dict[str, Any]:
    """Describe this machine and installation, as plain JSON values. `command`: how the user started it.

    Raises nothing for what cannot be found out: the entry says why instead.
    """
    return {
        "time": time.time(),
        "command": list(command),
        "cwd": str(Path.cwd()),
        "user": _user(),
        "host": socket.gethostname(),
        "hrdc_hpc": hrdc_hpc.__version__,
        "source": source(Path(hrdc_hpc.__file__).resolve().parent),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "packages": packages(),
        "platform": platform.platform(),
        "cpu": {"model": cpu_model(), "cores": os.cpu_count()},
        "gpus": gpus(),
    }


def packages() -> dict[str, str]:
    """Versions of all installed packages by name, read from their metadata."""
    found = {dist.name: dist.version for dist in importlib.metadata.distributions() if dist.name}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def source(package: Path) -> dict[str, Any]:
    """State of the git checkout that `package` is tracked in: commit, and what differs from it.

    {'sha', 'diff', 'untracked'}, or {'sha': None, 'why'} where there is no such checkout: an installed wheel, or a
    wheel in an environment that merely lies inside somebody's checkout.
    """
    try:
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        root = Path(_git(package, "rev-parse", "--show-toplevel").strip())
        sha = _git(root, "rev-parse", "HEAD").strip()
        diff = _git(root, "diff", "--binary", "HEAD")
        untracked = _git(root, "ls-files", "--others", "--exclude-standard").splitlines()
    except FileNotFoundError:
        return {"sha": None, "why": "git is not installed"}
    except subprocess.TimeoutExpired:
        return {"sha": None, "why": f"git did not answer within {_PATIENCE_S} s"}
    except subprocess.CalledProcessError as error:
        words = str(error.stderr).strip().splitlines()
        return {"sha": None, "why": f"not a git checkout: {words[-1] if words else 'git failed'}"}
    if len(diff) > _DIFF_LIMIT:
        diff = f"{diff[:_DIFF_LIMIT]}\n[cut here: {len(diff)} characters in all]\n"
    return {"sha": sha, "diff": diff, "untracked": untracked}


def gpus() -> list[dict[str, str]] | str:
    """Name, memory and driver of each GPU as the driver tells; why not, where it cannot."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "no nvidia-smi on the PATH"
    names = ("name", "memory.total", "driver_version")
    try:
        told = _run([tool, f"--query-gpu={','.join(names)}", "--format=csv,noheader"])
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi failed: {error}"
    return [dict(zip(names, (cell.strip() for cell in line.split(",")), strict=False)) for line in told.splitlines()]


def _git(folder: Path, *arguments: str) -> str:
    # optional locks would make a look at the source write to it
    return _run(["git", "--no-optional-locks", "-C", str(folder), *arguments])


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=_PATIENCE_S
    )
    return done.stdout


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in containers
        return f"uid {os.getuid()}"


def cpu_model() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
