"""Where a drill runs: how a run is launched there, found, hit, and brought back. Torch-free.

`Site` has what is the same everywhere, `Local` is this machine; slurm.py has the cluster.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.cluster.jobs import Job, job_state, last_job
from hrdc_hpc.cluster.signals import SAVE_FILE, STOP_FILE
from hrdc_hpc.drill.hit import hit, ranks_by_environ
from hrdc_hpc.drill.kinds import Site as SiteName
from hrdc_hpc.drill.plan import Fault
from hrdc_hpc.engine.checkpoint_files import MANIFEST, STATE, list_checkpoints
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import attempt_files

LAUNCH_S = 300
"""How long a launch command may take."""
STARTED_S = 120.0
"""How long the processes of a launched run may take to be there."""
_PAUSE_S = 0.05


class DrillError(RuntimeError):
    """The drill cannot go on; the text says why."""


def wait(until: Callable[[], bool], limit_s: float, what: str, pause_s: float = _PAUSE_S) -> None:
    """Return once `until` holds. Raises DrillError, saying `what` did not come."""
    deadline = time.monotonic() + limit_s
    while not until():
        if time.monotonic() > deadline:
            raise DrillError(f"{what}: not within {limit_s:.0f} s")
        time.sleep(pause_s)


class Site(ABC):
    """A place where runs are launched by the product's own command."""

    name: SiteName

    def __init__(self, arguments: Sequence[str]) -> None:
        """`arguments`: of every launch, all but --name."""
        self.arguments = list(arguments)
        self.environ = dict(os.environ)

    # launching

    def launch(self, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Give the launch command; whatever comes of it."""
        return subprocess.run(
            [sys.executable, "-m", "hrdc_hpc.launch", *self.arguments, "--name", name, *more],
            env=self.environ, check=False, text=True, timeout=LAUNCH_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    @contextlib.contextmanager
    def telling(self, variable: str, value: str) -> Iterator[None]:
        """Launch with an environment variable for the length of the block."""
        self.environ[variable] = value
        try:
            yield
        finally:
            del self.environ[variable]

    def begin(self, run: Path, *more: str) -> None:
        """Launch the run, new or stopped. Raises DrillError if the launch fails."""
        done = self.launch(run.name, *more)
        if done.returncode:
            raise DrillError(f"the launch of {run} ended with {done.returncode}:\n{done.stdout}")

    def job(self, run: Path) -> Job:
        """The run's newest job."""
        job = last_job(run)
        if job is None:
            raise DrillError(f"{run}: no job was written down")
        return job

    @abstractmethod
    def ended(self, run: Path) -> bool:
        """Whether nothing of the attempt under way is left."""

    @abstractmethod
    def back(self, run: Path, again: bool) -> str | None:
        """Have an ended run go on; `again`: by the launch command, else by itself. A complaint if it did not."""

    @abstractmethod
    def end(self, run: Path) -> None:
        """Take down what runs, for good."""

    @abstractmethod
    def ranks(self, run: Path) -> dict[int, int]:
        """Process ids on this machine by rank."""

    # striking: what was hit, in words

    def strike(self, fault: Fault, run: Path) -> str:
        """Carry out a fault on a run that is up, or down, as its kind wants it. Raises DrillError if it went wrong."""
        return self.strikes(fault, run)[fault.kind]()

    def strikes(self, fault: Fault, run: Path) -> dict[str, Callable[[], str]]:
        """How each kind is done here."""
        kill = dict.fromkeys(("kill-all", "kill-in-save", "kill-in-evaluation"), lambda: self.kill_all(run))
        return {
            **kill,
            "kill-rank": lambda: self.hit_rank(fault, run, "KILL"),
            "hang": lambda: self.hit_rank(fault, run, "STOP"),
            "stop-file": lambda: _touch(run / STOP_FILE),
            "save-file": lambda: _touch(run / SAVE_FILE),
            "second-launch": lambda: self._second_launch(run),
            "full-disk": lambda: self._full_disk(fault, run),
            "damaged-checkpoint": lambda: _damage(fault, run),
            "torn-metrics": lambda: _tear(fault, run),
        }

    def hit_rank(self, fault: Fault, run: Path, what: str) -> str:
        """Do something (see hit.py) to the fault's rank, once it is there."""
        wait(lambda: bool(self.ranks(run)) or self.ended(run), STARTED_S, f"{run}: a process of a rank")
        ranks = self.ranks(run)
        if not ranks:
            return "no rank was left"
        rank = sorted(ranks)[fault.rank(len(ranks))]
        hit(ranks[rank], what)
        return f"rank {rank}"

    @abstractmethod
    def kill_all(self, run: Path) -> str:
        """SIGKILL of all ranks at once."""

    def _second_launch(self, run: Path) -> str:
        done = self.launch(run.name)
        if done.returncode != Exit.DO_NOT_REQUEUE:
            raise DrillError(f"a second launch of {run} ended with {done.returncode}, not refused:\n{done.stdout}")
        return "the run"

    def _full_disk(self, fault: Fault, run: Path) -> str:
        """Rank 0 gets EFBIG for what is longer than a part of a checkpoint's state, as over a quota."""
        sizes = [state.stat().st_size for state in (run / "checkpoints").glob(f"step-*/{STATE}")]
        if not sizes:
            raise DrillError(f"{run}: no checkpoint whose size could be the limit")
        limit = int(max(sizes) * (0.5 + 0.4 * fault.share))
        return f"{self.hit_rank(replace(fault, target=0.0), run, f'fsize={limit}')}, no file over {limit} bytes"


class Local(Site):
    """This machine, by --cluster local."""

    name = "local"

    def ended(self, run: Path) -> bool:
        """Whether the controller and its ranks are gone."""
        return job_state(run, self.job(run)).phase == "gone" and not self.ranks(run)

    def back(self, run: Path, again: bool) -> str | None:  # noqa: ARG002 - here it is always the user who launches
        """Launch again: on a machine of one's own nobody else does."""
        self.begin(run)
        return None

    def end(self, run: Path) -> None:
        """Kill the controller and all ranks in one go."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(self.job(run).job_id), signal.SIGKILL)

    def ranks(self, run: Path) -> dict[int, int]:
        """Process ids by rank."""
        return ranks_by_environ(self.job(run).job_id, 0, run)

    def strikes(self, fault: Fault, run: Path) -> dict[str, Callable[[], str]]:
        """How each kind is done here."""
        asked = {"sigterm": signal.SIGTERM, "sigusr1": signal.SIGUSR1, "sigusr2": signal.SIGUSR2}
        ask = {kind: functools.partial(self._ask, fault, run, number) for kind, number in asked.items()}
        return {**super().strikes(fault, run), **ask}

    def kill_all(self, run: Path) -> str:
        """SIGKILL of everything, as in a power cut."""
        self.end(run)
        return "the ranks and their controller"

    def _ask(self, fault: Fault, run: Path, number: signal.Signals) -> str:
        if fault.share < 1 / 3:  # the ranks agree on it, whoever is told
            return self.hit_rank(fault, run, number.name.removeprefix("SIG"))
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(self.job(run).job_id), number)
        return "the controller"


def _touch(file: Path) -> str:
    file.touch()
    return "the run"


def _damage(fault: Fault, run: Path) -> str:
    """Lose a part of the newest checkpoint."""
    newest = list_checkpoints(run / "checkpoints")[-1]
    file = newest / (MANIFEST if fault.target < 0.3 else STATE)
    if fault.way == "file lost":
        file.unlink()
    elif fault.way == "cut short":
        os.truncate(file, int(file.stat().st_size * fault.share))
    else:
        content = bytearray(file.read_bytes())
        content[int(len(content) * fault.share)] ^= 1
        file.write_bytes(content)
    return f"{newest.name}/{file.name}, {fault.way}"


def _tear(fault: Fault, run: Path) -> str:
    """Leave half a line at the end of the newest attempt's metrics, as a kill inside a write does."""
    path = list(attempt_files(RunFolder(run)).values())[-1]
    with path.open("ab") as file:
        file.write(b'{"kind": "train", "step": 1'[: 5 + int(20 * fault.share)])
    return path.name
