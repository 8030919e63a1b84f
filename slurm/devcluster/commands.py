"""Programs that the cluster is made of: where they lie, what they are run with, what they said."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from devcluster.settings import Folder

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class ClusterError(RuntimeError):
    """The cluster did not come up, there is none, or it does not do what it was told; the text says why."""


def find(program: str) -> str | None:
    """Path of a program; daemons lie where an ordinary user's PATH does not lead."""
    return shutil.which(program, path=_PATH)


def environment(folder: Folder) -> dict[str, str]:
    """Environment of daemons and of the commands that ask them: nothing of the shell's own SLURM_ variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN_"))}
    return kept | {"PATH": _PATH, "SLURM_CONF": str(folder.conf)}


def ask(folder: Folder, *command: str) -> str:
    """Output of a SLURM command on this cluster; empty where it fails or the controller does not answer."""
    try:
        done = subprocess.run(
            command,
            env=environment(folder),
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def call(*command: str, text: str = "", env: dict[str, str] | None = None, timeout_s: float = 60) -> str:
    """Output of a command that must succeed, with `text` on its standard input; ClusterError with what it said."""
    try:
        done = subprocess.run(
            [find(command[0]) or command[0], *command[1:]], input=text, env=env, capture_output=True, text=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        raise ClusterError(f"{' '.join(command)} ended with {done.returncode}\n{(done.stderr + done.stdout).strip()}")
    return done.stdout


def tail(folder: Folder, names: Sequence[str], lines: int = 12) -> str:
    """The last lines of these logs, each under its path."""
    parts = []
    for name in names:
        path = folder.logs / f"{name}.log"
        text = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
        parts.append("\n".join([f"--- {path}", *text]))
    return "\n".join(parts)
