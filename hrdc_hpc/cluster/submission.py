"""From a config to a job: submitit's executors and the exact sbatch text. Torch-free."""

from __future__ import annotations

import io
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any, TypeVar

from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths
from submitit.slurm.slurm import SlurmExecutor

from hrdc_hpc.cluster import limits, local, script, shape
from hrdc_hpc.cluster.jobs import Job, Kind
from hrdc_hpc.cluster.places import RENDEZVOUS, forget_torch_variables
from hrdc_hpc.cluster.shape import ranks_per_node
from hrdc_hpc.cluster.task import TrainTask
from hrdc_hpc.config.cluster import Cluster
from hrdc_hpc.config.nodes import node_range
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.folder import RunFolder

_OWN_OPTIONS = {
    "partition": "partition", "nodes": "nodes", "gpus-per-node": "gpus_per_node", "gpus": "gpus_per_node",
    "ntasks-per-node": "ranks_per_node", "ntasks": "ranks_per_node", "cpus-per-task": "cpus_per_rank",
    "mem": "mem_gb", "mincpus": "cpus_per_rank", "time": "time_min", "signal": "signal_delay_s", "account": "account",
    "qos": "qos", "constraint": "constraint", "array": "array_parallelism",
}  # fmt: skip
"""sbatch options that are fields of `cluster`: given twice they would contradict each other."""
_NOT_OURS_TO_CHANGE = ("output", "error", "open-mode", "job-name", "chdir", "wrap", "export")
_DEFAULTS = ("requeue", "comment")
"""Set by us, and the user's to change."""
_MEETING_OVER_S = 86_400.0
"""Ranks that have not met after a day have given up (engine/processes.py), or met and need the file no more."""


class SubmissionRefused(RuntimeError):
    """The scheduler did not take the job."""


class Slurm(SlurmExecutor):  # type: ignore[misc, unused-ignore]
    """submitit's executor with our own srun line; also made where there is no SLURM, to print what it would submit."""

    def __init__(self, config: RunConfig, run: Path) -> None:
        """Log and pickle into the run's folder."""
        super().__init__(RunFolder(run).logs)
        self.config, self.run = config, run

    @classmethod
    def affinity(cls) -> int:
        """Return that it is usable: `submit` looks for sbatch itself."""
        return 2

    def sbatch_text(self) -> str:
        """Return the text that is handed to sbatch; the same function writes it at submission."""
        return self._make_submission_file_text(self._submitit_command_str, uid="")

    def log_pattern(self) -> str:
        """Return where the ranks log, in srun's words."""
        return str(JobPaths(folder=self.folder).stdout)

    @property
    def _submitit_command_str(self) -> str:
        return f"-u -m submitit.core._submit {shlex.quote(str(self.folder))}"

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        line = script.srun_line(self.config, self.run, command, self.log_pattern())
        text: str = super()._make_submission_file_text(line, uid)
        if self.config.cluster.signal_delay_s == 0:  # submitit always asks for one
            text = "".join(line for line in text.splitlines(True) if not line.startswith("#SBATCH --signal="))
        return text

    def _num_tasks(self) -> int:
        """How many result files submitit's own Job would look for; we do not ask it."""
        return 1


def check(kind: Kind, config: RunConfig, run: Path) -> None:
    """Raise ValueError for what submission could not carry out, before anything is made."""
    refuse_odd_path(run)
    if kind == "slurm":
        sbatch_options(config)
        script.check(config, run)
    elif node_range(config.cluster.nodes) != (1, 1):
        raise ValueError(
            f"cluster.nodes: {config.cluster.nodes}, but --cluster local is this machine alone; add --nodes 1"
            " (--ranks-per-node sets the number of processes)"
        )
    else:
        local.visible_gpus(config.cluster.gpus_per_node, os.environ)
    shape.refuse_unfit_sizes(config)


def refuse_odd_path(run: Path) -> None:
    """Raise ValueError for a folder whose path SLURM or Python would read otherwise."""
    if bad := sorted({character for character in str(run) if character in ":%\\" or not character.isprintable()}):
        raise ValueError(
            f"run folder {str(run)!r}: its path must not contain {' '.join(map(repr, bad))} (':' separates Python's"
            " search paths, '%' and '\\' are special in SLURM's log names); choose another --out-dir"
        )


def notes(kind: Kind, config: RunConfig, *, ask: bool) -> list[str]:
    """What the user should know before the job is handed over; with `ask`, SLURM is asked for its limits.

    Raises ValueError with all that would never start.
    """
    if kind == "slurm":
        return [*shape.notes(config), *(limits.check(config.cluster) if ask else ())]
    keys = (
        "modules", "venv", "python", "container", "environment", "nccl", "network_interface", "scratch",
        "compile_cache", "srun", "cpu_bind", "gpu_bind",
    )  # fmt: skip
    default = Cluster()
    unused = [f"cluster.{key}" for key in keys if getattr(config.cluster, key) != getattr(default, key)]
    return [f"--cluster local starts the ranks as they are here, without {', '.join(unused)}"] if unused else []


def sbatch_text(config: RunConfig, run: Path) -> str:
    """Return the exact text that `submit` hands to sbatch. Writes nothing."""
    return _slurm_executor(config, run).sbatch_text()


def local_text(config: RunConfig, run: Path) -> str:
    """Return what a local launch starts, as shell lines for the reader. Writes nothing."""
    setup = "".join(f"{line}\n" for line in config.cluster.setup)
    environ = {**_job_environ(run, {}), "CUDA_VISIBLE_DEVICES": _gpus(config)}
    words = " ".join(f"{key}={shlex.quote(value)}" for key, value in environ.items())
    ranks = ranks_per_node(config.cluster)
    return (
        f"# {ranks} rank{'s'[: ranks > 1]} on this machine, at most {config.cluster.time_min} minutes, each:\n"
        f"{setup}{words} {shlex.quote(sys.executable)} {_slurm_executor(config, run)._submitit_command_str}\n"
    )


def submit(kind: Kind, config: RunConfig, run: Path) -> Job:
    """Hand the run to the scheduler, or start it here.

    Raises SubmissionRefused with the scheduler's words, OSError when it is not known whether the job was taken.
    """
    folder, since = RunFolder(run), time.time()
    remove_old_meeting_points(run)
    task = TrainTask(str(run))
    if kind == "local":
        executor: Any = local.Executor(folder.logs, _job_environ(run, os.environ))
        executor.update_parameters(
            tasks_per_node=ranks_per_node(config.cluster),
            gpus_per_node=config.cluster.gpus_per_node,
            timeout_min=config.cluster.time_min,
            signal_delay_s=config.cluster.signal_delay_s,
            setup=config.cluster.setup,
        )
        return Job(kind, executor.submit(task).job_id, since)
    executor = _slurm_executor(config, run)
    with to_sbatch("job"):
        return Job(kind, executor.submit(task).job_id, since)


def remove_old_meeting_points(run: Path) -> None:
    """Clear away what killed starts left. Their names do not come again, so this only saves files."""
    for file in (run / RENDEZVOUS).glob("*"):
        with suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > _MEETING_OVER_S:
                file.unlink()


def _slurm_executor(config: RunConfig, run: Path) -> Slurm:
    return configured(Slurm(config, run))


S = TypeVar("S", bound=Slurm)


def configured(executor: S) -> S:
    """Set what the executor's config asks of SLURM."""
    config, run = executor.config, executor.run
    cluster, ranks = config.cluster, ranks_per_node(config.cluster)
    given = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "mem": f"{cluster.mem_gb}GB" if cluster.mem_gb else None,
        "gpus_per_node": cluster.gpus_per_node or None,
        # tasks would cap a range of nodes (SLURM 22.05: 1-3 nodes of 1 task got 1 node of 3 idle ones)
        "ntasks_per_node": None if shape.is_malleable(cluster) else ranks,
    }
    executor.update_parameters(
        **{key: value for key, value in given.items() if value is not None},
        job_name=config.name,
        nodes=cluster.nodes,
        cpus_per_task=cluster.cpus_per_rank,
        time=cluster.time_min,  # an integer: submitit's own handler would fail on a string
        signal_delay_s=cluster.signal_delay_s,
        array_parallelism=cluster.array_parallelism,
        wckey=None,  # some sites reject any
        stderr_to_stdout=True,
        use_srun=False,  # the line is ours
        setup=script.before(config, run),
        teardown=script.after(config, run),
        additional_parameters=sbatch_options(config),
    )
    return executor


def sbatch_options(config: RunConfig) -> dict[str, str | int | bool]:
    """Our own options and the user's, which may override --requeue and --comment; a value of false leaves one out."""
    chosen: dict[str, str | int | bool] = {"requeue": True, "comment": f"hrdc_hpc {config.name}"}
    if shape.is_malleable(config.cluster):  # without tasks nothing else asks for the CPUs of all ranks of a node
        chosen["mincpus"] = ranks_per_node(config.cluster) * config.cluster.cpus_per_rank
    for given, value in config.cluster.sbatch.items():
        option = given.replace("_", "-")
        if refusal := _refusal(option):
            raise ValueError(f"cluster.sbatch.{given}: {refusal}")
        if option == "no-requeue" and value:
            chosen.pop("requeue", None)
        chosen[option] = value
    return {option: value for option, value in chosen.items() if value is not False}


def _refusal(option: str) -> str | None:
    """Why an sbatch option may not be given, if so. sbatch takes the beginning of an option for the option."""
    if not option.replace("-", "").isalnum():
        return "cannot be set; it is not the name of an sbatch option"
    if len(option) == 1:
        return "write the option's long name, as sbatch --help shows it"
    if option in _NOT_OURS_TO_CHANGE:
        return "cannot be set; the launcher needs its own"
    if option in _OWN_OPTIONS:
        return f"set cluster.{_OWN_OPTIONS[option]} instead, which has a flag of its own"
    known = (*_OWN_OPTIONS, *_NOT_OURS_TO_CHANGE, *_DEFAULTS)
    if option not in _DEFAULTS and (begun := [name for name in known if name.startswith(option)]):
        return f"sbatch would take it for {begun[0]}; " + (_refusal(begun[0]) or "write it in full")
    return None


def _gpus(config: RunConfig) -> str:
    return local.visible_gpus(config.cluster.gpus_per_node, os.environ)


def _job_environ(run: Path, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of local ranks: they import the run's snapshot, whatever lies in the working directory."""
    environ = {key: value for key, value in base.items() if not key.startswith(("SUBMITIT_", "SLURM_"))}
    forget_torch_variables(environ)
    search = [str(RunFolder(run).code), *filter(None, [base.get("PYTHONPATH")])]
    return environ | {"PYTHONPATH": os.pathsep.join(search), "PYTHONSAFEPATH": "1"}


@contextmanager
def outside_of_any_job() -> Iterator[None]:
    """Submit from inside a job as if from a login node: sbatch takes SLURM_NTASKS and the like for options.

    submitit's clean_env does the same and more: it also hides SLURM_CONF and the user's SBATCH_ defaults.
    """
    hidden = {}
    if "SLURM_JOB_ID" in os.environ:
        hidden = {
            key: os.environ.pop(key) for key in list(os.environ) if key.startswith("SLURM_") and key != "SLURM_CONF"
        }
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def to_sbatch(what: str) -> Iterator[None]:
    """Call sbatch for a 'job' or an 'array', through submitit. Raises SubmissionRefused with sbatch's own words."""
    said = io.StringIO()
    try:
        with outside_of_any_job(), redirect_stderr(said):  # submitit prints what it raises, too
            yield
    except (FailedJobError, FailedSubmissionError) as error:
        raise SubmissionRefused(
            f"sbatch did not take the {what}: {str(error).strip()}\nTo go on: mend what it names, then give the same"
            " command again (--dry-run shows the text that sbatch gets)"
        ) from error
    sys.stderr.write(said.getvalue())
