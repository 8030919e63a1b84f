"""What a launch finds in the run folder, and what it makes of it. Torch-free.

nothing   -> made: config, manifest, snapshot of the code
new       -> made before, but never ran: any setting may change
started   -> goes on from its last checkpoint, if only operational fields changed; on the code of its first launch
running   -> refused: one writer
finished  -> its result is told; nothing is done
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hrdc_hpc.cluster import snapshot
from hrdc_hpc.cluster.jobs import job_state, last_job
from hrdc_hpc.cluster.scheduler import SchedulerError
from hrdc_hpc.config.compare import Difference, differences
from hrdc_hpc.config.load import loads, to_yaml
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.files import write_text_durably
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import peek
from hrdc_hpc.record.manifest import collect


class Refused(ValueError):
    """The launch would touch something that it must not; nothing was done."""


@dataclass(frozen=True)
class Found:
    """What lies where the run should go: nothing, a run that never started, one that did, one that is finished."""

    folder: RunFolder
    state: Literal["nothing", "new", "started", "finished"]
    changed: tuple[Difference, ...] = ()
    """Fields that the launch may change: operational ones, and any before the first start."""


def look(config: RunConfig, run: Path) -> Found:
    """Look at the run folder; changes nothing. Raises Refused if the launch must not go on."""
    folder = RunFolder(run)
    if not run.exists():
        return Found(folder, "nothing")
    if not folder.config.is_file():
        raise Refused(
            f"{run} exists, but is not a run folder (no {folder.config.name}); choose another --name or --out-dir"
        )
    state = folder.state()
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
    _refuse_if_running(folder)
    return Found(folder, state, tuple(changed))


def prepare(found: Found, config: RunConfig, command: Sequence[str]) -> list[str]:
    """Make a new run folder, or bring a started one up to date; lines for the user. `command`: for the manifest."""
    folder, notes = found.folder, []
    if found.state == "nothing":
        try:
            RunFolder.create(folder.path, config_text=to_yaml(config), manifest=collect(command))
        except FileExistsError as error:
            raise Refused(f"{folder.path} was made by another launch just now; nothing was touched") from error
    else:
        going = "was made before, but never ran" if found.state == "new" else "goes on from its last checkpoint"
        notes.append(f"{folder.path} {going}")
        notes += [f"  {change}" for change in found.changed]
        if found.changed:
            _replace_config(folder, to_yaml(config))
    if not _has_code(folder):
        snapshot.take(folder.code)
    elif differing := snapshot.changed_files(folder.code):
        shown = ", ".join(differing[:3]) + (", ..." if len(differing) > 3 else "")
        notes.append(
            f"the run keeps the code of its first launch, which differs from the present one in {len(differing)} files"
            f" ({shown}); remove {folder.code} to go on with the present code"
        )
    return notes


def discard(found: Found) -> None:
    """Remove a folder that this launch made and whose job was not taken; one that was there before stays."""
    if found.state == "nothing":
        shutil.rmtree(found.folder.path)


def _refuse_if_running(folder: RunFolder) -> None:
    holder = peek(folder)
    if holder is not None:
        raise Refused(
            f"{folder.path} is running: {holder}. Nothing was touched; follow it with: {follow_command(folder.path)}"
        )
    job = last_job(folder.path)
    if job is None:
        return
    try:
        state = job_state(folder.path, job)
    except SchedulerError:  # the lease will keep two jobs apart
        return
    if state.phase != "gone":
        raise Refused(
            f"{folder.path}: job {job.job_id} of this run is {state.word}. Nothing was touched; follow it with:"
            f" {follow_command(folder.path)}"
        )


def follow_command(run: Path) -> str:
    """Return the command that follows a run."""
    return f"python -m hrdc_hpc.launch --follow {shlex.quote(str(run))}"


def _replace_config(folder: RunFolder, text: str) -> None:
    """Keep the old text as config-<n>.yaml, then put the new one in place; a kill in between leaves a whole config."""
    number = 1 + sum(1 for _ in folder.path.glob("config-*.yaml"))
    write_text_durably(folder.path / f"config-{number}.yaml", folder.config.read_text())
    write_text_durably(folder.config, text)


def _has_code(folder: RunFolder) -> bool:
    return (folder.code / "hrdc_hpc" / "__init__.py").is_file()
