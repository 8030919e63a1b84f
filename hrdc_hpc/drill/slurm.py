"""A drill on SLURM, as an ordinary user: what scancel, scontrol and sbatch can do to one's own job. Torch-free.

With the folder of a slurm/dev-cluster also what only an administrator can: end slurmctld, cut a node off.
"""

from __future__ import annotations

import functools
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hrdc_hpc.cluster import scheduler
from hrdc_hpc.drill.hit import hit, ranks_by_environ
from hrdc_hpc.drill.plan import Fault
from hrdc_hpc.drill.sites import STARTED_S, DrillError, Site, wait
from hrdc_hpc.record.folder import RunFolder

SETTLE_S = 5.0
"""How long a requeued job waits: the end of its processes, if it comes in late, is taken for the next start's."""
QUEUE_S = 3600.0
"""How long the queue may take."""
_UP = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
_TO_COME = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "REQUEUE_FED", "RESV_DEL_HOLD")
_PAUSE_S = 0.3
_SPARE_S = 60.0
"""How long a lost node stays away at most while the job waits."""
_HERE_S = 5.0
"""A rank of a step that is not seen on this machine for so long runs on another."""


class Slurm(Site):
    """A cluster."""

    name = "slurm"

    def __init__(self, arguments: Sequence[str], *, urgent: str | None = None, dev_cluster: Path | None = None) -> None:
        """Launch with `arguments`; `urgent`: a partition that preempts; `dev_cluster`: the folder of one."""
        super().__init__(arguments)
        self._urgent, self._dev_cluster = urgent, dev_cluster
        self._restarts = 0
        """Of the job, when it was last seen to start."""
        self._mend: list[Callable[[], object]] = []
        """To be done before the run goes on."""
        self._mend_later: list[Callable[[], object]] = []
        """And once it does: a node that is back while its lost job is cleared away makes SLURM count wrong."""

    def begin(self, run: Path, *more: str) -> None:
        """Launch, and wait until the job runs."""
        super().begin(run, *more)
        self._restarts = -1
        over = (*_TO_COME, *_UP, "")
        wait(
            lambda: self._started(run) or self._state(run) not in over,
            QUEUE_S,
            f"{run}: the start of its job",
            _PAUSE_S,
        )

    def ended(self, run: Path) -> bool:
        """Whether the job's start that was last seen is over and its nodes are free of it."""
        try:
            shown = self._show(run)
        except scheduler.SchedulerError:  # the controller restarts
            return False
        over = shown["JobState"] not in _UP or int(shown.get("Restarts", 0)) > self._restarts
        # SLURM counts a requeue before the ranks are gone, which may still save; those of a lost node stay
        return over and not (self.ranks(run) and not self._mend_later)

    def back(self, run: Path, again: bool) -> str | None:
        """See the job start again; StartTime=now spares the two minutes that SLURM has it wait."""
        _do(self._mend)
        since = time.monotonic()
        while time.monotonic() < since + QUEUE_S:
            if RunFolder(run).state() == "finished":
                return None
            if self._started(run):
                _do(self._mend_later)
                return "it came back, though that was for its user to say" if again else None
            if time.monotonic() > since + _SPARE_S:  # the queue may have no other node
                _do(self._mend_later)
            state = self._state(run)
            if state in _TO_COME and time.monotonic() > since + SETTLE_S:
                self._quietly("scontrol", "update", f"JobId={self._id(run)}", "StartTime=now")
            elif state not in (*_TO_COME, *_UP, ""):
                self.begin(run)
                return None if again else f"nobody requeued it ({state}); it was launched again"
            time.sleep(_PAUSE_S)
        raise DrillError(f"{run}: its job did not start again within {QUEUE_S:.0f} s")

    def end(self, run: Path) -> None:
        """Cancel the job."""
        _do(self._mend)
        _do(self._mend_later)
        self._quietly("scancel", self._id(run))

    def ranks(self, run: Path) -> dict[int, int]:
        """Process ids of the ranks of this start that run on this machine, by rank."""
        return ranks_by_environ(self._id(run), self._restarts, run)

    def strikes(self, fault: Fault, run: Path) -> dict[str, Callable[[], str]]:
        """How each kind is done here."""
        job = self._id(run)
        call = functools.partial(self._call, run)
        return {
            **super().strikes(fault, run),
            "sigusr2": lambda: call("scancel", "--signal=USR2", job),
            "requeue": lambda: call("scontrol", "requeue", job),
            "cancel": lambda: call("scancel", job),
            "preempt": lambda: self._preempt(run),
            "controller": lambda: self._dev("restart", "slurmctld"),
            "lost-node": lambda: self._cut_off(fault, run),
        }

    def hit_rank(self, fault: Fault, run: Path, what: str) -> str:
        """Do something to the fault's rank: here, or else where srun finds it."""
        wait(lambda: self._has_step(run) or self.ended(run), STARTED_S, f"{run}: its step")
        deadline = time.monotonic() + _HERE_S
        while time.monotonic() < deadline:
            if self.ranks(run):
                return super().hit_rank(fault, run, what)
            time.sleep(_PAUSE_S)
        rank = fault.rank(int(self._show(run).get("NumTasks", 1)))
        return self._hit_elsewhere(run, str(rank), what)

    def kill_all(self, run: Path) -> str:
        """SIGKILL of all ranks; scancel would cancel the job."""
        wait(lambda: self._has_step(run) or self.ended(run), STARTED_S, f"{run}: its step")
        deadline = time.monotonic() + _HERE_S
        while time.monotonic() < deadline and not self.ended(run):
            if ranks := self.ranks(run):
                for pid in ranks.values():
                    hit(pid, "KILL")
                return f"{len(ranks)} ranks"
            time.sleep(_PAUSE_S)
        return self._hit_elsewhere(run, "all", "KILL")

    def _hit_elsewhere(self, run: Path, rank: str, what: str) -> str:
        """Hit a rank, or all, where they are: a step of its own on every node of the job looks for them."""
        words = ["-m", "hrdc_hpc.drill.hit", str(run), self._id(run), str(self._restarts), rank, what]
        step = ["--overlap", f"--jobid={self._id(run)}", "--ntasks-per-node=1", f"--chdir={RunFolder(run).code}"]
        deadline, done = time.monotonic() + STARTED_S, None
        while time.monotonic() < deadline and not self.ended(run):
            done = subprocess.run(
                ["srun", *step, sys.executable, *words], check=False, capture_output=True, text=True, timeout=STARTED_S
            )
            if "hit" in done.stdout:
                return f"rank {rank}" if rank != "all" else "all ranks"
        if done is None:
            return "no rank was left"
        raise DrillError(f"rank {rank} was not found on the job's nodes: {done.stderr.strip()[-200:]}")

    def _preempt(self, run: Path) -> str:
        nodes = self._show(run).get("NodeList", "")
        job = scheduler.call(
            "sbatch", "--parsable", f"--partition={self._urgent}", f"--nodelist={nodes}", "--exclusive",
            f"--nodes={self._show(run)['NumNodes'].partition('-')[0]}", "--output=/dev/null", "--time=5",
            "--job-name=hrdc-drill-urgent", "--wrap=sleep 240",
        ).split()[-1]  # fmt: skip
        self._mend.append(lambda: self._quietly("scancel", job))
        return f"job on {nodes}"

    def _cut_off(self, fault: Fault, run: Path) -> str:
        listed = scheduler.call("scontrol", "show", "hostnames", self._show(run)["NodeList"]).split()
        node = listed[fault.rank(len(listed))]
        self._dev("link", node, "down")
        self._mend_later.append(lambda: self._dev("link", node, "up"))
        return f"node {node}"

    def _dev(self, *words: str) -> str:
        program = Path(__file__).resolve().parents[2] / "slurm" / "dev-cluster"
        done = subprocess.run(
            [sys.executable, program, *words, f"--dir={self._dev_cluster}"],
            check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=STARTED_S,
        )  # fmt: skip
        if done.returncode:
            raise DrillError(f"dev-cluster {shlex.join(words)} ended with {done.returncode}: {done.stdout.strip()}")
        return " ".join(words)

    def _started(self, run: Path) -> bool:
        """Whether the job runs, in a start that was not seen before; notes it."""
        try:
            shown = self._show(run)
        except scheduler.SchedulerError:
            return False
        restarts = int(shown.get("Restarts", 0))
        if shown["JobState"] != "RUNNING" or restarts <= self._restarts:
            return False
        self._restarts = restarts
        return True

    def _state(self, run: Path) -> str:
        """The job's state; '' while SLURM does not answer."""
        try:
            return self._show(run)["JobState"]
        except scheduler.NoSuchJob:
            return "forgotten"
        except scheduler.SchedulerError:
            return ""

    def _show(self, run: Path) -> dict[str, str]:
        return scheduler.show_job(self._id(run))

    def _has_step(self, run: Path) -> bool:
        """Whether the ranks were started."""
        try:
            steps = scheduler.call("squeue", "--noheader", "--steps", f"--jobs={self._id(run)}", "--format=%i")
        except scheduler.SchedulerError:
            return False
        return any(step.strip().rpartition(".")[2].isdecimal() for step in steps.splitlines())

    def _id(self, run: Path) -> str:
        return self.job(run).job_id

    def _call(self, run: Path, program: str, *words: str) -> str:
        """Run one of SLURM's programs, after the ranks have been started: a signal goes to steps."""
        wait(lambda: self._has_step(run) or self.ended(run), STARTED_S, f"{run}: its step")
        try:
            scheduler.call(program, *words)
        except scheduler.SchedulerError as error:
            if not self.ended(run):
                raise DrillError(str(error)) from error
        return "the job"

    def _quietly(self, program: str, *words: str) -> None:
        try:
            scheduler.call(program, *words)
        except scheduler.SchedulerError:
            return


def _do(what: list[Callable[[], object]]) -> None:
    while what:
        what.pop()()


def version() -> str:
    """SLURM's version, e.g. '22.05.8'."""
    return scheduler.call("sbatch", "--version").split()[-1]
