"""submitit's local executor, made fit for a run of several ranks on this machine. Torch-free.

Kept: the pickle, the task's entry point, the file names, the time limit with its SIGUSR2. What differs from submitit:
- the first rank that fails, or is killed, ends its peers after a grace (submitit waits for all of them, up to the time
  limit); the controller leaves with the code of that rank (submitit's always with 0);
- it runs in a session of its own: it outlives the launcher, a closed terminal, and Ctrl-C in it;
- stop signals to it reach the ranks (submitit's dies of SIGUSR2 and leaves them behind), and if it is killed they get
  SIGTERM (task.py), so that none goes on without a time limit;
- no automatic restart (submitit's code 144): a machine of one's own preempts nobody, and a time limit is to be kept;
- the ranks' environment is given to them alone; CUDA_VISIBLE_DEVICES of the shell is respected.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit.local.local import Controller, LocalExecutor, LocalJob

from hrdc_hpc.cluster.ends import note_end
from hrdc_hpc.cluster.signals import STOP_SIGNALS, TERMINAL_SIGNALS

PEER_GRACE_S = 3.0
"""How long the peers of a failed rank may go on, to write down their side of it."""


class Executor(LocalExecutor):  # type: ignore[misc, unused-ignore]
    """Starts the controller below instead of submitit's."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        """`environ`: the whole environment of the controller and the ranks."""
        super().__init__(folder)
        self.environ = dict(environ)

    def _submit_command(self, command: str) -> LocalJob[Any]:
        ranks, setup = self.parameters["tasks_per_node"], self.parameters["setup"]
        environ = self.environ | {
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_NTASKS": str(ranks),
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * self.parameters["timeout_min"]),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(self.parameters["signal_delay_s"]),
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_LOCAL_START": str(time.time_ns()),
            "CUDA_VISIBLE_DEVICES": visible_gpus(self.parameters["gpus_per_node"], self.environ),
        }
        with (self.folder / "controller.out").open("a") as out:
            process = subprocess.Popen(
                after_setup(setup, [sys.executable, "-m", "hrdc_hpc.cluster.local", str(self.folder)]),
                env=environ, start_new_session=True, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        return LocalJob(folder=self.folder, job_id=str(process.pid), tasks=list(range(ranks)), process=process)


def after_setup(setup: Sequence[str], command: list[str]) -> list[str]:
    """Return the command that runs the shell lines first and then becomes `command`, under the same process id."""
    if not setup:
        return command
    return ["bash", "-c", "\n".join([*setup, 'exec "$@"']), "setup", *command]


def visible_gpus(number: int, environ: Mapping[str, str]) -> str:
    """The first `number` of the GPUs that the shell may use, as CUDA_VISIBLE_DEVICES; '' hides all."""
    allowed = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if "CUDA_VISIBLE_DEVICES" not in environ:
        allowed = [str(gpu) for gpu in range(number)]
    if number > len(allowed):
        raise ValueError(
            f"cluster.gpus_per_node: {number}, but CUDA_VISIBLE_DEVICES={environ['CUDA_VISIBLE_DEVICES']!r} allows"
            f" {len(allowed)}; lower --gpus-per-node or unset the variable"
        )
    return ",".join(allowed[:number])


class RankController(Controller):  # type: ignore[misc, unused-ignore]
    """Starts the ranks, passes signals on, and ends all of them when one fails."""

    def __init__(self, folder: Path) -> None:
        """`folder`: the run's logs."""
        super().__init__(folder)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda number, _: self._forward_signal(signal.Signals(number)))
        # the launcher shields what it starts from Ctrl-C, and the ranks would inherit that
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINAL_SIGNALS)

    def run_ranks(self) -> int:
        """Run to the end; the exit code of the first rank that left badly (128 + n if signal n killed it), or 0."""
        try:
            self.start_tasks()
            return self._follow()
        finally:
            self.kill_tasks()

    def _follow(self, pause_s: float = 0.05) -> int:
        limit = time.monotonic() + self.timeout_s
        warning = limit - self.signal_delay_s
        while time.monotonic() < limit:
            codes = [task.poll() for task in self.tasks]
            bad = next((rank for rank, code in enumerate(codes) if code), None)
            if bad is not None:
                return self._end_peers(bad, pause_s)
            if None not in codes:
                return 0
            if time.monotonic() >= warning:
                warning = limit
                self._forward_signal(signal.SIGUSR2)
            time.sleep(pause_s)
        note_end(
            self.folder.parent, job_id=self.pid, rank=None, code=1, reason="killed at the time limit, cluster.time_min"
        )
        return 1

    def _end_peers(self, bad: int, pause_s: float) -> int:
        code: int = self.tasks[bad].returncode
        if code < 0:
            name = signal.Signals(-code).name
            note_end(self.folder.parent, job_id=self.pid, rank=bad, code=code, reason=f"killed by {name}")
            code = 128 - code
        end = time.monotonic() + PEER_GRACE_S
        while time.monotonic() < end and any(task.poll() is None for task in self.tasks):
            time.sleep(pause_s)
        return code


if __name__ == "__main__":
    sys.exit(RankController(Path(sys.argv[1])).run_ranks())
