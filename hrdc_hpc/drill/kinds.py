"""The kinds of faults: where they can be made, when they strike, and what must be seen afterwards. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Site = Literal["local", "slurm"]
Phase = Literal["startup", "train", "save", "evaluate"]
Must = Literal["go on", "lose nothing", "set aside", "be refused", "save", "run", "be hung", "replay"]

SITES: tuple[Site, ...] = ("local", "slurm")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of fault."""

    says: str
    """What is done, in a line."""
    sites: tuple[Site, ...] = SITES
    ends: bool = True
    """Whether the attempt ends by it; if not, the run must go on under the same attempt."""
    down: bool = False
    """Done while no attempt runs, between two."""
    opens: bool = False
    """Told to the run when it is launched for the first time; one a run."""
    phases: tuple[Phase, ...] = ("train",)
    """Where it strikes; one is drawn."""
    must: Must = "go on"
    """What must be seen of it: see `observe`; the run must end as the undisturbed one in any case."""
    again: bool = False
    """On SLURM nobody requeues: the drill gives the launch command again, as a user would."""
    needs: str | None = None
    """Option of the command without which it cannot be made."""
    extra: bool = False
    """Left out unless it is named: it needs something, or takes long."""


KINDS: dict[str, Kind] = {
    "kill-rank": Kind(says="SIGKILL of one rank", phases=("startup", "train", "train", "train")),
    "kill-all": Kind(
        says="SIGKILL of all ranks at once, and of their controller on one machine",
        phases=("startup", "train", "train"),
    ),
    "kill-in-save": Kind(says="SIGKILL of all ranks inside a save", phases=("save",)),
    "kill-in-evaluation": Kind(says="SIGKILL of all ranks inside an evaluation", phases=("evaluate",)),
    "sigterm": Kind(says="SIGTERM to the job", sites=("local",), phases=("train", "evaluate"), must="lose nothing"),
    "sigusr1": Kind(says="SIGUSR1 to the job", sites=("local",), must="lose nothing"),
    "sigusr2": Kind(
        says="SIGUSR2 to the job, as before a time limit", phases=("train", "evaluate"), must="lose nothing"
    ),
    "requeue": Kind(says="scontrol requeue, unasked for", sites=("slurm",), phases=("startup", "train")),
    "preempt": Kind(
        says="a job of a higher partition on the same nodes",
        sites=("slurm",),
        must="lose nothing",
        needs="--urgent-partition",
    ),
    "cancel": Kind(says="scancel, and the launch again", sites=("slurm",), again=True, must="lose nothing"),
    "stop-file": Kind(says="touch RUN/stop, and the launch again", again=True, must="lose nothing"),
    "save-file": Kind(says="touch RUN/save", ends=False, must="save"),
    "second-launch": Kind(says="the launch command once more while it runs", ends=False, must="be refused"),
    "damaged-checkpoint": Kind(
        says="a byte, the end or a file of the newest checkpoint is lost", down=True, ends=False, must="set aside"
    ),
    "torn-metrics": Kind(says="half a line at the end of the metrics", down=True, ends=False),
    "full-disk": Kind(says="rank 0 can write no file of more than a part of a checkpoint", phases=("save",)),
    "hang": Kind(says="SIGSTOP of one rank, until the watchdogs act", must="be hung", extra=True),
    "nan": Kind(
        says="a loss that is not a number, once, in the first attempt",
        ends=False,
        opens=True,
        must="replay",
        extra=True,
    ),
    "controller": Kind(
        says="slurmctld is ended and started again",
        sites=("slurm",),
        ends=False,
        must="run",
        extra=True,
        needs="--dev-cluster",
    ),
    "lost-node": Kind(says="the network of one node goes down", sites=("slurm",), extra=True, needs="--dev-cluster"),
}
