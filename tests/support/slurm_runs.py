"""Training runs on a cluster of slurm/dev-cluster, launched, followed and compared as a user would."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hrdc_hpc.cluster.history import Story, history
from hrdc_hpc.engine import checkpoint
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_raw

from runs import differing, final_state, learnt
from slurm_cluster import Slurm

OVERRIDES = ("optim.epochs=20", "checkpoint.every_steps=10", "log.every_steps=1", "eval.every_epochs=3")
"""240 steps, a checkpoint every ten."""
EVERY_STEPS = 10


@dataclass(frozen=True)
class Lab:
    """Where runs of one shape go: a cluster, a folder, the data, and flags that all of them get."""

    slurm: Slurm
    out: Path
    digits: Path
    shape: tuple[str, ...] = ("--nodes", "2", "--ranks-per-node", "1")

    def launch(self, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        """`python -m hrdc_hpc.launch --partition gpu --cfg digits_lt.yaml ...` as a user types it."""
        command = [
            sys.executable, "-m", "hrdc_hpc.launch", "--partition", "gpu", *self.shape, "--cfg", "digits_lt.yaml",
            "--name", name, "--out-dir", str(self.out), f"data.dataset.root={self.digits}", *OVERRIDES, *more,
        ]  # fmt: skip
        return subprocess.run(command, env=self.slurm.env, check=False, capture_output=True, text=True, timeout=400)

    def finished(self, name: str, *more: str) -> Path:
        """A run that nothing disturbs, to its end."""
        ended = self.launch(name, "--wait", *more)
        assert ended.returncode == 0, ended.stdout + ended.stderr + logs(self.out / name)
        assert "balanced test accuracy" in ended.stdout
        return self.out / name

    def submit(self, name: str, *more: str) -> tuple[Path, str]:
        """Launch; run folder and job id."""
        submitted = self.launch(name, *more)
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        job = re.search(r"job (\d+)", submitted.stdout)
        assert job, submitted.stdout
        return self.out / name, job[1]

    def start(self, name: str, *more: str) -> tuple[Path, str]:
        """Launch, and return run folder and job id once the first checkpoint is there."""
        run, job = self.submit(name, *more)
        wait_for(lambda: bool(checkpoint.list_checkpoints(run / "checkpoints")), run)
        return run, job


def wait_for(there: Callable[[], bool], run: Path, timeout_s: float = 150) -> None:
    """Wait until something is so; fail with the run's logs."""
    deadline = time.monotonic() + timeout_s
    while not there():
        assert time.monotonic() < deadline, logs(run)
        time.sleep(0.02)


def logs(run: Path) -> str:
    return "\n".join(
        f"--- {file.name}\n{file.read_text(errors='replace')[-6000:]}" for file in sorted((run / "logs").glob("*.out"))
    )


def repeated_steps(run: Path) -> int:
    """Steps that were trained more than once."""
    steps = [r["step"] for r in read_raw(RunFolder(run)) if r["kind"] == "train"]
    return len(steps) - len(set(steps))


def pids(run: Path, rank: int | None = None) -> list[int]:
    """Processes of the ranks of a run on this machine; of one rank alone by SLURM's number."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            environ = dict(v.partition(b"=")[::2] for v in (entry / "environ").read_bytes().split(b"\0"))
        except OSError:
            continue
        ours = str(run / "logs").encode() in words and b"submitit.core._submit" in words
        ours = ours and not words[0].endswith(b"srun") and b"SLURM_PROCID" in environ
        if ours and (rank is None or environ[b"SLURM_PROCID"] == str(rank).encode()):
            found.append(int(entry.name))
    return found


def same_as_undisturbed(run: Path, straight: Path, job: str) -> list[Story]:
    """Finished, under the same job id all the time, with the same weights and metrics; its attempts."""
    stories = history(run)
    assert len(stories) >= 2, "it was over before it could be disturbed"
    assert [story.job_id for story in stories] == [job] * len(stories)
    assert [story.restart_count for story in stories] == list(range(len(stories)))
    assert RunFolder(run).state() == "finished", logs(run)
    assert differing(final_state(straight), final_state(run)) == []
    assert learnt(run) == learnt(straight)
    return stories
