"""Packing by a SLURM array: every task writes its own shards, the last one the index. Torch-free.

A task that is killed, preempted or out of time leaves whole shards; the same command submits an array again, which goes
on. Beside the pack lie, until somebody removes them, code/ (what the tasks run), config.yaml and logs/.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import time
from dataclasses import replace
from pathlib import Path

from hrdc_hpc.cluster import jobs, scheduler, script, snapshot, submission
from hrdc_hpc.cluster.console import say
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.config.load import to_yaml
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.pack.packing import begin, config_of, exit_code, open_plan, refuse_without_room, told
from hrdc_hpc.record.files import write_text_durably
from hrdc_hpc.record.folder import RunFolder

_TASKS = 16


def submit(args: argparse.Namespace) -> int:
    """Hand an array over to SLURM, or print it (--dry-run); the exit code. Raises ValueError, SchedulerError."""
    config = _for_packers(config_of(args))
    submission.refuse_odd_path(args.out)
    script.check(config, args.out)
    if args.dry_run:
        say(sbatch_text(args, config, args.tasks or _TASKS).rstrip())
        return Exit.DONE
    if shutil.which("sbatch") is None:
        raise ValueError("no sbatch on the PATH: leave out --partition and --profile to pack on this machine")
    plan = open_plan(args, config)
    if (done := begin(args.out, plan)) is not None:
        say(f"{args.out} is finished: nothing to do. {told(done, args.out)}")
        return exit_code(done)
    _refuse_a_second(args.out)
    refuse_without_room(args.out, plan)
    tasks = min(args.tasks or _TASKS, plan.shards)
    _prepare(args.out, config)
    text = args.out / "logs" / "pack.sh"
    write_text_durably(text, sbatch_text(args, config, tasks))
    jobs.note_submitting(args.out, "slurm")
    since = time.time()
    try:
        with submission.outside_of_any_job():
            job_id = scheduler.call("sbatch", "--parsable", str(text)).strip().splitlines()[-1].partition(";")[0]
    except scheduler.SchedulerError as error:
        jobs.note_refusal(args.out, str(error))
        raise
    jobs.note_job(args.out, jobs.Job("slurm", job_id, since))
    say(f"array {job_id}: {tasks} tasks for {plan.shards} shards are in the queue; logs: {args.out / 'logs'}")
    say("The last task writes the index. Should one fail, the same command goes on with what is left.")
    return Exit.DONE


def _for_packers(config: RunConfig) -> RunConfig:
    """One process on one node, without GPUs; the profile is in the values already."""
    cluster = replace(config.cluster, nodes=1, ranks_per_node=1, gpus_per_node=0, profile=None)
    return replace(config, name="pack", cluster=cluster)


def _refuse_a_second(out: Path) -> None:
    """ValueError if an array that was submitted before may still write."""
    job = jobs.last_job(out)
    if job is None:
        return
    # one by one: squeue names an ended element of an array before those that still run
    states = scheduler.queue_states([job.job_id])
    left = [element for element, (state, _) in states.items() if jobs.phase_of(state) != "gone"]
    if left:
        raise ValueError(
            f"{out}: {len(left)} tasks of array {job.job_id} are still queued or running: wait for them, or end them"
            f" with: scancel {job.job_id}"
        )


def _prepare(out: Path, config: RunConfig) -> None:
    folder = RunFolder(out)
    folder.logs.mkdir(exist_ok=True)
    shutil.rmtree(folder.code, ignore_errors=True)
    snapshot.take(folder.code)
    write_text_durably(folder.config, to_yaml(config))


def sbatch_text(args: argparse.Namespace, config: RunConfig, tasks: int) -> str:
    """Return the exact text that sbatch gets."""
    cluster, out = config.cluster, args.out
    wanted: dict[str, str | int | bool | None] = {
        "job-name": config.name,
        "array": f"0-{tasks - 1}%{min(tasks, cluster.array_parallelism)}",
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": cluster.cpus_per_rank,
        "time": cluster.time_min,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "mem": f"{cluster.mem_gb}GB" if cluster.mem_gb else None,
        "output": str(out / "logs" / "%A_%a.out"),
        "open-mode": "append",
        **submission.sbatch_options(config),
    }
    options = [
        f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"
        for name, value in wanted.items()
        if value is not None
    ]
    line = script.srun_line(config, out, _arguments(args, out, tasks), str(out / "logs" / "%A_%a.out"))
    line = line.replace("srun ", "srun --open-mode=append ", 1)  # a requeued task goes on in its log
    return "\n".join(["#!/bin/bash", *options, "", *script.before(config, out), line, ""])


def _arguments(args: argparse.Namespace, out: Path, tasks: int) -> str:
    words = ["-u", "-m", "hrdc_hpc.pack", "--cfg", str(RunFolder(out).config), "--out", str(out)]
    words += [f"--shard-gb={args.shard_bytes / 1e9!r}", f"--check={args.check}", f"--on-bad={args.on_bad}"]
    for name in ("shorter_side", "quality", "workers"):
        if (value := getattr(args, name)) is not None:
            words.append(f"--{name.replace('_', '-')}={value}")
    return f'{shlex.join(words)} --task="$SLURM_ARRAY_TASK_ID/{tasks}"'
