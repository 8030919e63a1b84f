"""Launching one run: start or resume it, show what would be started, follow it to its end. Torch-free."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from hrdc_hpc.cluster import dependencies, runs, script, submission
from hrdc_hpc.cluster.console import complain, say
from hrdc_hpc.cluster.ends import log_path
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.cluster.jobs import Job, Kind, job_state, last_job, note_job, note_refusal, note_submitting
from hrdc_hpc.cluster.results import print_result
from hrdc_hpc.cluster.signals import terminal_waits
from hrdc_hpc.config.load import loads, to_yaml
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.preflight import preflight
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.manifest import collect


def launch(args: argparse.Namespace, config: RunConfig, command: Sequence[str]) -> int:
    """Start or resume the run of `config`, whose paths are absolute, as the command line says; the exit code."""
    kind: Kind = args.cluster
    run = config.out_dir / config.name
    submission.check(kind, config, run)
    if args.dry_run:
        dependency = dependencies.on(args.after)
        submitted = (
            dependencies.link(config, dependency) if args.chain > 1 else dependencies.waiting(config, dependency)
        )
        return _dry_run(kind, config, run, submitted)
    if kind == "slurm" and not args.prepare and shutil.which("sbatch") is None:
        raise ValueError(NO_SBATCH)
    for note in submission.notes(kind, config, ask=not args.prepare):
        say(f"note: {note}")
    found, job = runs.look(config, run), None  # refuses before anything is made
    if found.state != "finished":
        preflight(config.data)
        with runs.claimed(config, run, lambda: collect(command)) as found:
            if found.state != "finished":
                job = start(found, None if args.prepare else kind, config, args.chain, args.after)
    if found.state == "finished":
        say(f"{run} is finished: nothing to do. To start another, give it another --name.")
        print_result(found.folder.summary() or {}, run)
    if job is None:
        return Exit.DONE
    if args.wait:
        return follow_to_the_end(run, job, config)
    say(how_to_go_on(run))
    return Exit.DONE


def start(
    found: runs.Found, kind: Kind | None, config: RunConfig, links: int = 1, after: str | None = None
) -> Job | None:
    """Bring the folder up to date and hand its job over, if `kind` says to whom; says what was done.

    Args:
        found: what lies in the run folder.
        kind: None: prepare only.
        config: the run.
        links: jobs in a chain; the last one is returned.
        after: the run or job that must have ended well before it starts.
    """
    run, job = found.folder.path, None
    dependency = dependencies.on(after)
    for note in runs.prepare(found, config):
        say(note)
    if kind is None:
        say(f"prepared {run}; start it with:\n  {_plain_command(config, run)}")
        return None
    try:
        with terminal_waits():  # a job that was taken must be written down
            job = _submit_chain(kind, config, run, links, dependency)
    except KeyboardInterrupt:
        if job:
            say(how_to_go_on(run))
        raise
    return job


def _submit_chain(kind: Kind, config: RunConfig, run: Path, links: int, dependency: str | None) -> Job:
    """Submit one job, or several of which each waits for the end of the one before, however that ends."""
    if links == 1:
        return _submit(kind, dependencies.waiting(config, dependency), run)
    first = job = _submit(kind, dependencies.link(config, dependency), run, chain="")
    for taken in range(1, links):
        try:
            job = _submit(kind, dependencies.link(config, f"afterany:{job.job_id}"), run, chain=first.job_id)
        except submission.SubmissionRefused as error:
            raise submission.SubmissionRefused(
                f"{error}\n{taken} of {links} jobs of the chain were taken before, and go on with the run:\n"
                f"{how_to_go_on(run)}"
            ) from error
    say(f"a chain of {links} jobs: each goes on where the one before ended; when the run is finished, so is the chain")
    return job


def _submit(kind: Kind, config: RunConfig, run: Path, chain: str | None = None) -> Job:
    """`chain`: the first job of the chain; '' for that one itself."""
    job = hand_over(kind, config, run, chain)
    here = f"runs on this machine, for at most {config.cluster.time_min} minutes (--time)"
    say(f"job {job.job_id} {here if kind == 'local' else 'is in the queue'}")
    if chain in (None, ""):  # once for all links
        say(f"run folder: {run}")
    say(f"log:        {log_path(run, job.job_id)}")
    return job


def hand_over(kind: Kind, config: RunConfig, run: Path, chain: str | None = None) -> Job:
    """Submit or start the job of a claimed and prepared run, and write it down. Raises SubmissionRefused, OSError."""
    note_submitting(run, kind)
    try:
        job = submission.submit(kind, config, run)
    except submission.SubmissionRefused as error:
        note_refusal(run, str(error))
        raise
    try:
        note_job(run, job, job.job_id if chain == "" else chain)
    except OSError:
        say(f"job {job.job_id} was taken, but cannot be written down; its log: {log_path(run, job.job_id)}")
        raise
    return job


def how_to_go_on(run: Path) -> str:
    """Return the commands that follow the run, look at it and stop it, for the reader."""
    return (
        f"follow it:  {runs.follow_command(run)}\nlook at it: {runs.status_command(run)}\n"
        f"stop it:    {runs.cancel_command(run)}  (saves first)"
    )


NO_SBATCH = (
    "no sbatch on the PATH: this is not a machine that can submit to SLURM. To train on this machine instead, say so:"
    " --cluster local. To see what would be submitted: --dry-run"
)


def _dry_run(kind: Kind, config: RunConfig, run: Path, submitted: RunConfig) -> int:
    """Print the job and the resolved config; what would stop a real launch goes to standard error. Writes nothing.

    `submitted`: the config with what this submission alone asks for; of a chain, its first link.
    """
    say(submission.local_text(config, run) if kind == "local" else submission.sbatch_text(submitted, run))
    say(f"# the run's config.yaml, in {run}\n{to_yaml(config)}")
    if kind == "slurm" and shutil.which("sbatch") is None:
        complain(f"launched here, this would stop: {NO_SBATCH}")
    try:
        for note in submission.notes(kind, config, ask=shutil.which("sbatch") is not None):
            complain(f"note: {note}")
        if runs.look(config, run).state == "finished":
            complain(f"launched here, this would do nothing: {run} is finished")
        else:
            preflight(config.data)
    except ValueError as error:
        complain(f"launched here, this would stop: {error}")
    return Exit.DONE


def follow_existing(run: Path, hint: str) -> int:
    """Follow a run that was launched before; the exit code. Raises ValueError if there is nothing to follow.

    `hint`: what to say of a folder that is none of a run.
    """
    if not (run / "config.yaml").is_file():
        raise ValueError(f"--follow: {run} is not a run folder (no config.yaml){hint}")
    folder, job = RunFolder(run), last_job(run)
    if folder.state() == "finished":
        print_result(folder.summary() or {}, run)
        return Exit.DONE
    if job is None:
        raise ValueError(f"--follow: no job was submitted for {run}; start it with launch --cfg {run / 'config.yaml'}")
    return follow_to_the_end(run, job, loads(folder.config.read_text(), place=str(folder.config)), ours=False)


def follow_to_the_end(run: Path, job: Job, config: RunConfig, *, ours: bool = True) -> int:
    """Follow to the end.

    Ctrl-C leaves a SLURM job in peace, and what another command launched; a local run of `ours` is told to save and
    stop, then killed.
    """
    from hrdc_hpc.cluster.follow import follow  # rich takes its time to import

    batch = config.optim.global_batch
    try:
        return follow(run, job, batch)
    except KeyboardInterrupt:
        if job.kind == "slurm" or not ours:
            say(f"\njob {job.job_id} goes on\n{how_to_go_on(run)}")
            return Exit.LEFT
    say("\nstopping the run: it saves first (Ctrl-C again: at once; what was saved before stays)")
    kill(run, job, signal.SIGTERM)
    try:
        follow(run, job, batch)
    except KeyboardInterrupt:
        kill(run, job, signal.SIGKILL)
    return Exit.LEFT


def kill(run: Path, job: Job, number: signal.Signals) -> None:
    """Signal a local job: its controller, which passes on a request to stop; SIGKILL to its whole process group."""
    if job_state(run, job).phase == "gone":
        return
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if number == signal.SIGKILL else os.kill)(int(job.job_id), number)


def _plain_command(config: RunConfig, run: Path) -> str:
    """Return what starts a prepared run without submitit, in a batch script; by itself, without srun."""
    code, python = RunFolder(run).code, script.interpreter(config, run)
    lines = script.node_lines(config.cluster)
    if (code / "jobs" / "train.py").is_file():
        lines.append(f"srun {python} {shlex.join([str(code / 'jobs' / 'train.py'), str(run)])}")
    else:  # an installed package comes without jobs/
        environ = f"PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}"
        lines.append(f"{environ} srun {python} {shlex.join(['-m', 'hrdc_hpc.cluster.task', str(run)])}")
    return "\n  ".join(lines)
