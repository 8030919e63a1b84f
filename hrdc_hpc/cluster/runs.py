"""What a launch finds in the run folder, and what it makes of it. Torch-free.

nothing   -> made: config, manifest, snapshot of the code
new       -> nothing was saved yet: any setting may change
started   -> goes on from its last checkpoint, if only operational fields changed; on the code of its first launch
running   -> refused: one writer
finished  -> its result is told; nothing is done

Of several launches of one run at once, one holds the claim; it holds from the look to the written-down job id.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hrdc_hpc.cluster import snapshot
from hrdc_hpc.cluster.jobs import Job, JobState, cut_off, job_state, jobs_of_last_launch, last_job
from hrdc_hpc.cluster.scheduler import SchedulerError
from hrdc_hpc.cluster.signals import STOP_FILE
from hrdc_hpc.config.compare import Difference, differences
from hrdc_hpc.config.load import loads, to_yaml
from hrdc_hpc.config.older import concerned, to_yaml_like
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.files import TEMPORARY, naming, temporary_beside, write_text_durably
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease, LeaseHeld, peek

_CLAIM_TTL_S = 600.0
"""Longer than sbatch takes: a claim is not renewed. Of a launch that died on this machine it is free at once."""


class Refused(ValueError):
    """The launch would touch something that it must not; nothing was done."""


class AtWork(Refused):
    """The run is running or queued."""

    def __init__(self, run: Path, state: str) -> None:
        """`state`: such as 'is running: process 7 on n1'."""
        self.state = state
        super().__init__(f"{run}{state}. Nothing was touched; follow it with: {follow_command(run)}")


Ask = Callable[[Path, Job], JobState]
"""Where the job of a run folder is; raises SchedulerError."""


@dataclass(frozen=True)
class Found:
    """What lies where the run should go: nothing, a run that saved nothing yet, one that did, one that is finished."""

    folder: RunFolder
    state: Literal["nothing", "new", "started", "finished"]
    changed: tuple[Difference, ...] = ()
    """Fields that the launch may change: operational ones, and any before the first checkpoint."""
    made: bool = False
    """Whether this launch made the folder."""


def look(config: RunConfig, run: Path, ask: Ask = job_state) -> Found:
    """Look at the run folder; changes nothing. Raises Refused, AtWork if the launch must not go on."""
    folder = RunFolder(run)
    if not run.exists():
        return Found(folder, "nothing")
    _refuse_other_folder(folder)
    state = _state(folder)
    frozen = loads(folder.config.read_text(), place=str(folder.config))
    changed = differences(frozen, config)
    semantic = [change for change in changed if not change.operational]
    if semantic and state != "new" and not config.checkpoint.accept_changes:
        shown = "\n".join(f"  {change}" for change in semantic)
        what = "is finished" if state == "finished" else "was started"
        raise Refused(
            f"{run} {what} with other settings of what is learnt (there -> now):\n{shown}\n"
            "Give this run another --name, or take back the change to go on with the old one, or go on all the same"
            " with checkpoint.accept_changes=true. Nothing was touched."
        )
    if state == "finished":
        return Found(folder, "finished")
    _refuse_if_at_work(folder, ask)
    _for_its_code(folder, config, changed)
    return Found(folder, state, tuple(changed))


@contextmanager
def claimed(
    config: RunConfig, run: Path, manifest: Callable[[], Mapping[str, Any]], ask: Ask = job_state
) -> Iterator[Found]:
    """Have the run to ourselves: make its folder if there is none, shut out other launches, look at what is there.

    A folder that this launch made is removed again if the block ends in an error before a job was handed over. Raises
    Refused. `manifest`: called if the folder is made.
    """
    folder = RunFolder(run)
    made = _make(folder, config, manifest)
    _refuse_other_folder(folder)
    claim = claim_launch(run)
    try:
        yield replace(look(config, run, ask), made=made)
    except BaseException:
        if made and last_job(run) is None and not cut_off(run):
            discard(run)
        raise
    finally:
        claim.release()


def prepare(found: Found, config: RunConfig, shared_code: Path | None = None) -> list[str]:
    """Bring a run folder up to date; lines for the user. `shared_code`: a snapshot to link to, instead of its own."""
    folder, notes = found.folder, []
    if (folder.path / STOP_FILE).exists():
        (folder.path / STOP_FILE).unlink(missing_ok=True)
        notes.append(f"the file {STOP_FILE!r}, which stopped the run, is removed")
    if cut_off(folder.path):
        notes.append(
            "an earlier launch was killed while it submitted. If its job was taken, it is in the queue (squeue --me"
            f" --name={shlex.quote(config.name)}); of two jobs of a run one is refused when it starts"
        )
    if not found.made:
        going = "goes on from its last checkpoint" if found.state == "started" else "begins anew: nothing was saved yet"
        notes.append(f"{folder.path} {going}")
        notes += [f"  {change}" for change in found.changed]
        if found.changed:
            text, unknown = _for_its_code(folder, config, found.changed)
            notes += [
                f"  {key}: the run's code, of its first launch, does not know it: it goes for this job, and config.yaml"
                " does not get it"
                for key in unknown
            ]
            _replace_config(folder, text)
    if not _has_code(folder):
        if shared_code is None:
            snapshot.take(folder.code)
        else:  # relative: the folder above may be moved
            folder.code.symlink_to(os.path.relpath(shared_code, folder.path))
    elif not folder.code.is_symlink():
        notes += other_code(folder.code)
    return notes


def _for_its_code(folder: RunFolder, config: RunConfig, changed: Sequence[Difference]) -> tuple[str, list[str]]:
    """Return the config as text for the code that the run keeps, and changed keys that this does not know.

    What is asked of the scheduler is the launcher's to carry out, whose code is the present one. Raises Refused if
    anything else was changed that the run's code does not know: it would not start.
    """
    text, left_out = to_yaml_like(folder.config.read_text(), config) if _has_code(folder) else (to_yaml(config), [])
    if left_out and not snapshot.changed_files(folder.code):  # renewed since
        text, left_out = to_yaml(config), []
    unknown = [change.key for change in changed if concerned(change.key, left_out)]
    theirs = [key for key in unknown if not key.startswith("cluster.") or key.startswith("cluster.requeue")]
    if theirs:
        raise Refused(
            f"{folder.path} keeps the code of its first launch, which does not know {', '.join(theirs)}: leave that out"
            f" to go on with it, or remove {folder.code} to go on with the present code. Nothing was touched."
        )
    return text, unknown


def other_code(code: Path) -> list[str]:
    """Return a line that says so if the snapshot `code` is not of the present code."""
    differing = snapshot.changed_files(code)
    if not differing:
        return []
    shown = ", ".join(differing[:3]) + (", ..." if len(differing) > 3 else "")
    return [
        f"the run keeps the code of its first launch, which differs from the present one in {len(differing)} files"
        f" ({shown}); remove {code} to go on with the present code"
    ]


def _make(folder: RunFolder, config: RunConfig, manifest: Callable[[], Mapping[str, Any]]) -> bool:
    """Make the run folder, as it is before its first launch; False if something was there, or another was faster."""
    if folder.path.exists():
        return False
    try:
        RunFolder.create(folder.path, config_text=to_yaml(config), manifest=manifest())
    except FileExistsError:
        if not os.path.lexists(folder.path):  # it is the folder above that cannot be made
            raise
        return False
    return True


def discard(run: Path) -> None:
    """Remove a folder of a run that no job was ever handed over for."""
    aside = temporary_beside(run)
    run.rename(aside)  # so that nobody finds half of it
    shutil.rmtree(aside, ignore_errors=True)


def claim_launch(run: Path) -> Lease:
    """Take the claim on the launch of a run, or of a sweep. Raises Refused if another launch has it."""
    claims = RunFolder(run)
    claims.lease = run / "launch"  # by the same rules as the lease of the run
    try:
        with naming(run):
            return Lease.acquire(claims, ttl_s=_CLAIM_TTL_S)
    except LeaseHeld as error:
        who = peek(claims, _CLAIM_TTL_S) or "another process"
        raise Refused(
            f"{run} is being launched by {who}. Nothing was touched; once it is launched, follow it with:"
            f" {follow_command(run)}. If that process is dead, remove {claims.lease}"
        ) from error


def _refuse_other_folder(folder: RunFolder) -> None:
    if not folder.config.is_file():
        raise Refused(
            f"{folder.path} exists, but is not a run folder (no {folder.config.name}); choose another --name or"
            " --out-dir"
        )


def _state(folder: RunFolder) -> Literal["new", "started", "finished"]:
    """As the folder says, but what saved nothing has nothing that another setting could spoil."""
    state = folder.state()
    # damaged ones count
    saved = [path for path in folder.checkpoints.glob("*") if not path.name.startswith(TEMPORARY)]
    return "new" if state == "started" and not saved else state


def _refuse_if_at_work(folder: RunFolder, ask: Ask) -> None:
    holder = peek(folder)
    if holder is not None:
        raise AtWork(folder.path, f" is running: {holder}")
    for job in reversed(jobs_of_last_launch(folder.path)):  # of a chain any may be left, whichever was cancelled
        try:
            state = ask(folder.path, job)
        except SchedulerError:  # the lease will keep two jobs apart
            return
        if state.phase != "gone":
            raise AtWork(folder.path, f": job {job.job_id} of this run is {state.word}")


def follow_command(run: Path) -> str:
    """Return the command that follows a run."""
    return f"python -m hrdc_hpc.launch --follow {shlex.quote(str(run))}"


def status_command(run: Path) -> str:
    """Return the command that says where a run, or each of a sweep's, is."""
    return f"python -m hrdc_hpc.status {shlex.quote(str(run))}"


def cancel_command(run: Path) -> str:
    """Return the command that ends a run, or all of a sweep's, here or on SLURM."""
    return f"python -m hrdc_hpc.status cancel {shlex.quote(str(run))}"


def resubmit_command(sweep: Path) -> str:
    """Return the command that submits what a sweep has left."""
    return f"python -m hrdc_hpc.launch --resubmit-failed {shlex.quote(str(sweep))}"


def report_command(study: Path) -> str:
    """Return the command that writes the report of a scaling study anew."""
    return f"python -m hrdc_hpc.scaling report {shlex.quote(str(study))}"


def _replace_config(folder: RunFolder, text: str) -> None:
    """Keep the old text as config-<n>.yaml, then put the new one in place; a kill in between leaves a whole config."""
    number = 1 + sum(1 for _ in folder.path.glob("config-*.yaml"))
    write_text_durably(folder.path / f"config-{number}.yaml", folder.config.read_text())
    write_text_durably(folder.config, text)


def _has_code(folder: RunFolder) -> bool:
    return (folder.code / "hrdc_hpc" / "__init__.py").is_file()
