"""Where runs are: state, progress, attempts, as far as their folders and the scheduler tell. Torch-free.

The run folder is asked first: the summary, the lease, the attempts, the metrics. What it cannot know (waiting in the
queue, why, until when; gone without a word) SLURM is asked, once for all runs; where SLURM is not there or does not
answer, the folder alone speaks.

| state    | what it is                                                                                          |
|----------|-----------------------------------------------------------------------------------------------------|
| prepared | the folder is there, nothing was submitted                                                          |
| queued   | a job waits, and has not started yet                                                                |
| requeued | the job that was at work before waits to go on                                                      |
| running  | at work; `doing` says at what                                                                       |
| finished | the summary is written                                                                              |
| stopped  | saved and left, and nobody starts it again: cancelled, time limit, stop file                        |
| failed   | an error, and nobody starts it again                                                                |
| lost     | gone without a word: killed, or its node was lost; the same launch goes on from the last checkpoint |
| unknown  | its job is SLURM's, and SLURM cannot be asked                                                       |
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hrdc_hpc.cluster import queue
from hrdc_hpc.cluster.ends import read_ends
from hrdc_hpc.cluster.goodput import Activity
from hrdc_hpc.cluster.history import Story, history
from hrdc_hpc.cluster.jobs import Job, JobState, all_jobs, cut_off, job_state
from hrdc_hpc.cluster.queue import Queued
from hrdc_hpc.cluster.results import root_cause
from hrdc_hpc.cluster.scheduler import SchedulerError
from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.newest import Newest, newest

State = Literal["prepared", "queued", "requeued", "running", "finished", "stopped", "failed", "lost", "unknown"]

GOING = ("queued", "requeued", "running", "unknown")
"""States from which a run may go on by itself."""
OVER = ("stopped", "failed", "lost")
"""States of a run that ended without its result, and goes on only if somebody starts it again."""
_DOING = {
    "startup": "starting up", "training": "training", "measuring": "measuring", "evaluation": "evaluating",
    "saving": "saving", "other": "running",
}  # fmt: skip
_STOPPED = ("preempted", "time limit", "cancelled", "stop file", "stopped")
_LOST = ("killed", "node lost")
_PLAIN = ("RUNNING", "running on this machine")
_SAME_START_S = 60.0
"""Clocks of nodes and controller may differ by that much."""


@dataclass(frozen=True)
class Overview:
    """One run. Times are Unix seconds; what is not known is None."""

    run: str
    """Path of its folder."""
    state: State
    doing: str | None
    """Of a running one: starting up, training, measuring, evaluating, saving, running (between these), closing down,
    silent (no sign of life)."""
    word: str
    """The scheduler's word and reason, or why it is not going on; empty where the state says all."""
    may_start: float | None
    """Of a waiting job, when it may start at the earliest."""
    attempt: int | None
    """Number of the newest attempt, from 0."""
    attempts: int
    last_end: str | None
    """Why the newest attempt that is over ended, e.g. 'preempted'."""
    step: int | None
    """Optimizer steps done; of an attempt that has not trained yet, where it goes on."""
    steps: int | None
    epoch: int | None
    """Epochs done, whole ones."""
    epochs: int | None
    loss: float | None
    accuracy: float | None
    """Balanced accuracy of the primary prediction at the last evaluation, 0 to 1."""
    accuracy_of: str | None
    """Name of the primary prediction."""
    images_per_s: float | None
    eta_s: float | None
    saved_step: int | None
    """Of the newest checkpoint."""
    saved_age_s: float | None
    staging: str | None
    """How far the first node is with its own copy of the data set: "copying 3.1 of 60.0 GB, 800 MB/s"."""
    nodes: str | None
    job_id: str | None
    changed: float
    """When it was last submitted, started or finished."""


@dataclass(frozen=True)
class Survey:
    """Several runs, newest first."""

    runs: list[Overview]
    slurm: str
    """'asked', 'not needed', or why SLURM was not asked."""


@dataclass(frozen=True)
class _Found:
    """What a run's folder says, before anybody else is asked."""

    folder: RunFolder
    finished: bool
    jobs: tuple[Job, ...]
    stories: tuple[Story, ...]
    attempts: int


def survey(runs: Sequence[Path], now: float | None = None) -> Survey:
    """Look at runs; asks SLURM once, if any of them needs it. `now`: Unix seconds."""
    now = time.time() if now is None else now
    found = [_look(run) for run in runs]
    ids = {job.job_id for one in found if not one.finished for job in one.jobs if job.kind == "slurm"}
    known: dict[str, Queued] | None = {}
    slurm = "not needed"
    if ids:
        try:
            known, slurm = queue.ask(ids), "asked"
        except SchedulerError as error:
            known, slurm = None, _briefly(error)
    rows = [_overview(one, known, now) for one in found]
    rows = _with_accounting(rows) if known is not None else rows
    return Survey(sorted(rows, key=lambda row: row.changed, reverse=True), slurm)


def _briefly(error: SchedulerError) -> str:
    """The last line of what squeue said, without the long command."""
    text = re.sub(r"^squeue .*--jobs=\S+: ", "", str(error))
    return text.strip().splitlines()[-1]


def as_json(row: Overview) -> dict[str, Any]:
    """Return the documented keys of a run: those of Overview."""
    return asdict(row)


def _look(run: Path) -> _Found:
    folder = RunFolder(run)
    finished = folder.state() == "finished"
    if finished:  # its story is told on its own page
        return _Found(folder, True, tuple(all_jobs(run)), (), len(read_attempts(folder)))
    stories = tuple(history(run))
    jobs = list(all_jobs(run))
    if stories and stories[-1].job_id not in {job.job_id for job in jobs}:  # from a batch script of one's own
        info: Mapping[str, Any] = next((a["info"] for a in reversed(read_attempts(folder)) if "info" in a), {})
        if info.get("cluster") == "slurm":
            jobs.append(Job("slurm", stories[-1].job_id, stories[-1].began))
    return _Found(folder, False, tuple(jobs), stories, len(stories))


def _overview(found: _Found, known: Mapping[str, Queued] | None, now: float) -> Overview:
    read = newest(found.folder)
    row = _progress(found, read, now)
    if found.finished:
        return replace(row, state="finished", step=row.steps or row.step, eta_s=None)
    job, state = _job(found, known)
    queued = (known or {}).get(job.job_id) if job and job.kind == "slurm" else None
    row = replace(row, job_id=job.job_id if job else row.job_id, word=state.word if state else "")
    over = [story for story in found.stories if story.cause != "running"]
    row = replace(row, last_end=over[-1].cause if over else None)
    held = bool(found.stories) and found.stories[-1].cause == "running"
    if state and state.phase == "queued":
        again = bool(found.stories) and job is not None and found.stories[-1].job_id == job.job_id
        may_start = queued.starts if queued else None
        return replace(row, state="requeued" if again else "queued", may_start=may_start, eta_s=None, nodes=None)
    if (state and state.phase == "running") or (held and (state is None or known is None)):
        doing, word = (_at(read), "") if held else _unheld(found, job, queued, now)
        word = word or (state.word if state and state.word not in _PLAIN else "")
        nodes = queued.nodes if queued and queued.nodes else row.nodes
        return replace(row, state="running", doing=doing, word=word, nodes=nodes)
    row = replace(row, eta_s=None)
    if state is None and job is not None:
        return replace(row, state="unknown", word=f"job {job.job_id} was submitted")
    return _ended(row, found, job, state)


def _job(found: _Found, known: Mapping[str, Queued] | None) -> tuple[Job | None, JobState | None]:
    """Return the job that counts and where it is: one that runs, else the first that waits, else the last.

    The state is None where SLURM cannot be asked. A run without any job has neither.
    """
    if not found.jobs:
        return None, None
    last = found.jobs[-1]
    if last.kind == "local":
        return last, job_state(found.folder.path, last)
    if known is None:
        return last, None
    there = [(job, known[job.job_id].state) for job in found.jobs if job.job_id in known]
    for phase in ("running", "queued"):
        if some := [(job, state) for job, state in there if state.phase == phase]:
            return some[0]
    return last, known[last.job_id].state if last.job_id in known else JobState("gone", "no longer known to SLURM")


def _at(read: Newest) -> str:
    """What the attempt that holds the lease is doing."""
    activity = Activity("startup" if read.whole else "training")
    for mark in read.marks:
        activity.after(mark)
    return _DOING[activity.part]


def _unheld(found: _Found, job: Job | None, queued: Queued | None, now: float) -> tuple[str, str]:
    """What a job is doing that runs and does not hold the lease, and a word on it."""
    last = found.stories[-1] if found.stories else None
    started = queued.starts if queued else None
    if last is None or (job and last.job_id != job.job_id) or (started is not None and last.began < started - 1):
        return "starting up", ""
    if last.cause != "killed":
        return "closing down", ""
    return "silent", f"no sign of life for {now - last.ended:.0f} s"


def _ended(row: Overview, found: _Found, job: Job | None, state: JobState | None) -> Overview:
    """Return the row of a run that nobody has at work or in the queue."""
    end = root_cause(read_ends(found.folder.path, job)) if job else None
    last = found.stories[-1] if found.stories else None
    gone = "" if state is None or state.word in ("ended", "no longer known to SLURM") else f" ({state.word})"
    if end is not None and (last is None or end["time"] > last.ended + _SAME_START_S):
        cause = end.get("cause", "failed")
        return replace(row, state=_state_after(cause, gone), word=f"{end['reason']}{gone}", last_end=cause)
    if last is not None:
        return replace(row, state=_state_after(last.cause, gone), word=f"{last.words}{gone}")
    if job is not None:
        return replace(row, state=_state_after("killed", gone), word=f"its job ended before the run began{gone}")
    word = "a launch was cut off while it submitted" if cut_off(found.folder.path) else "nothing was submitted"
    return replace(row, state="prepared", word=word)


def _state_after(cause: str, word: str) -> State:
    """The state of a run whose last attempt ended for `cause`, and whose job for the scheduler's `word`."""
    if cause in _STOPPED or (cause in _LOST and "CANCELLED" in word):
        return "stopped"
    return "lost" if cause in _LOST else "failed"


def _with_accounting(rows: list[Overview]) -> list[Overview]:
    """Have sacct say how jobs ended that left no word and that squeue has forgotten."""
    silent = [row.job_id for row in rows if row.state == "lost" and row.job_id and not row.word.endswith(")")]
    words = queue.accounted(silent)
    return [_with_word(row, words[row.job_id]) if row.job_id in words else row for row in rows]


def _with_word(row: Overview, word: str) -> Overview:
    return replace(row, state=_state_after("killed", word), word=f"{row.word} ({word})")


def _progress(found: _Found, read: Newest, now: float) -> Overview:
    """Return what the folder says of the progress; state and word are still to be found."""
    start, train, evaluation = read.start or {}, read.train or {}, read.evaluation or {}
    saved_step, saved_at = _saved(found.folder, read)
    step = saved_step
    if train and train["attempt"] == read.attempt:
        step = max(int(train["step"]), saved_step or 0)
    steps, per_epoch = train.get("steps", start.get("steps")), start.get("steps_per_epoch")
    eta = train.get("eta_s") if train and train["attempt"] == read.attempt else None
    primary = evaluation.get("primary")
    shares = evaluation.get("accuracy", {}).get(primary, {})
    last = found.stories[-1] if found.stories else None
    jobs = [job.job_id for job in found.jobs]
    return Overview(
        run=str(found.folder.path),
        state="unknown",
        doing=None,
        word="",
        may_start=None,
        attempt=read.attempt,
        attempts=found.attempts,
        last_end=None,
        step=step,
        steps=steps,
        epoch=step // per_epoch if step is not None and per_epoch else None,
        epochs=steps // per_epoch if steps and per_epoch else None,
        loss=train.get("loss"),
        accuracy=shares.get("balanced", shares.get("overall")),
        accuracy_of=primary,
        images_per_s=train.get("images_per_s"),
        eta_s=max(0.0, eta - (now - train["time"])) if eta is not None else None,
        saved_step=saved_step,
        saved_age_s=now - saved_at if saved_at is not None else None,
        staging=_staging(read),
        nodes=last.nodes if last else None,
        job_id=jobs[-1] if jobs else None,
        changed=_changed(found.folder),
    )


def _staging(read: Newest) -> str | None:
    told = read.staging
    if told is None or told["attempt"] != read.attempt:
        return None
    there, total = (told[key] / 1e9 for key in ("bytes", "total_bytes"))
    return f"{told['state']} {there:.1f} of {total:.1f} GB, {told['bytes_per_s'] / 1e6:.0f} MB/s"


def _saved(folder: RunFolder, read: Newest) -> tuple[int | None, float | None]:
    """Step and time of the newest checkpoint: those in the folder count; a finished run may have them elsewhere."""
    there = [path for path in folder.checkpoints.glob("step-*") if path.name[5:].isdecimal()]
    if there:
        last = max(there, key=lambda path: int(path.name[5:]))
        try:
            return int(last.name[5:]), last.stat().st_mtime
        except FileNotFoundError:  # it was just removed, for a newer one
            return int(last.name[5:]), None
    return (read.checkpoint["step"], read.checkpoint["time"]) if read.checkpoint else (None, None)


def _changed(folder: RunFolder) -> float:
    times = [0.0]
    for path in (folder.manifest, folder.attempts, folder.logs / "jobs.jsonl", folder.report / "summary.json"):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times)
