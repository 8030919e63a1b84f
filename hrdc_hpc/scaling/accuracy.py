"""Time to accuracy: the same training with several global batches, and what each takes to reach a value. Torch-free.

    python -m hrdc_hpc.scaling --cfg cifar10_lt.yaml --to-accuracy overall=60 --batches 128,256,512 --repeats 3

An ordinary sweep over optim.global_batch and seed, in a folder of its own: one submission, restartable, for every tool.
The config stays as it is but for these:

optim.lr_batch      where it is unset, the config's own batch: the rate grows with the batch (linear rule, arXiv
                    1706.02677), and the config's own batch trains as configured. `optim.lr_batch=null` on the command
                    line leaves the rate the same for all
eval.every_epochs   1, unless the command line says otherwise
checkpoint.every_steps, log.every_steps     as many images as with the config's batch

Epochs stay: a larger batch takes fewer steps.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hrdc_hpc.cluster import commandline, sweep, sweep_launch, sweep_members
from hrdc_hpc.cluster.console import say
from hrdc_hpc.cluster.sweep import Sweep
from hrdc_hpc.cluster.sweep_members import Member
from hrdc_hpc.config.grid import elements
from hrdc_hpc.config.load import load
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.scaling import accuracy_report, curves
from hrdc_hpc.scaling.curves import Wanted

_BATCH, _SEED = "optim.global_batch", "seed"
_FLAG = "--to-accuracy"
_LAUNCH: dict[str, Any] = {
    **dict.fromkeys(commandline.CLUSTER_FLAGS), "cluster": "slurm", "sbatch": None, "setup": None, "name": None,
    "out_dir": None, "after": None, "yes": False, "dry_run": False, "prepare": False, "wait": False, "overrides": [],
}  # fmt: skip
"""What launch's own command line has where nothing is said."""


def parse_batches(text: str) -> list[int]:
    """Read '128,256,512'. Raises ValueError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"--batches: must be whole numbers above 0, such as 128,256,512; got {text!r}")
    found = [int(word) for word in words]
    if len(set(found)) < len(found):
        raise ValueError(f"--batches: each once; got {text!r}")
    return found


def launch(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Train what is asked for, or what is left of it, and report on what is there; the exit code.

    Args:
        args: launch's own arguments, with to_accuracy ('overall=60'), batches ('128,256', None: once, twice and four
            times the config's) and repeats (seeds, None: one). What launch has and these lack is as its default.
        command: for the manifests.

    Raises ValueError for what is wrong with the command line or the config, and what launch raises.
    """
    args = argparse.Namespace(**{**_LAUNCH, **vars(args)})
    wanted = curves.parse_wanted(args.to_accuracy)
    given = commandline.overrides(args)
    base = load(args.cfg, given)
    if base.measure is not None:
        raise ValueError(f"{_FLAG}: measure is set, but these runs train; take it out of {args.cfg} and the overrides")
    asked, members = plan(args.cfg, base, given, args.batches, args.repeats or 1, command)
    if sweep.is_sweep(asked.path):
        _refuse_other_studies(asked)
    for note in _notes(base, members):
        say(f"note: {note}")
    code = sweep_launch.carry_out(args, asked, members, command)
    if args.dry_run or args.prepare:
        return code
    if args.wait or any(RunFolder(member.run).state() != "new" for member in members):
        report(asked.path, wanted)
    else:
        say(f"report, at any time: python -m hrdc_hpc.scaling report {shlex.quote(str(asked.path))}")
    return code


def plan(
    cfg: str, base: RunConfig, given: Sequence[str], batches: str | None, repeats: int, command: Sequence[str]
) -> tuple[Sweep, list[Member]]:
    """Return the sweep and its elements. Raises ValueError with all problems.

    Args:
        cfg: the config, as --cfg named it.
        base: the config with the overrides.
        given: the overrides.
        batches: as in `launch`.
        repeats: seeds, from the config's on.
        command: that asked for it.
    """
    if repeats < 1:
        raise ValueError(f"--repeats: must be at least 1; got {repeats}")
    own = base.optim.global_batch
    asked = parse_batches(batches) if batches else [own, 2 * own, 4 * own]
    grid = {_BATCH: [str(batch) for batch in asked], _SEED: [str(base.seed + i) for i in range(repeats)]}
    shared = [*_settings(base, given), *(word for word in given if _key(word) not in grid)]
    if not any(_key(word) == "name" for word in given):
        shared.append(f"name={base.name}-to-accuracy")
    members = [_with_intervals(member, own) for member in sweep_members.of_command(cfg, elements(grid), shared)]
    made = Sweep(
        path=members[0].config.out_dir, grid=grid, elements=[member.element for member in members], cfg=cfg,
        command=command,
    )  # fmt: skip
    return made, members


def _settings(base: RunConfig, given: Sequence[str]) -> list[str]:
    """Overrides of ours; those of the command line come behind, and win."""
    ours = ["eval.every_epochs=1"]
    if base.optim.lr_batch is None and not any(_key(word) == "optim.lr_batch" for word in given):
        ours.append(f"optim.lr_batch={base.optim.global_batch}")
    return ours


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def _with_intervals(member: Member, own: int) -> Member:
    """Save and log after as many images as with the config's own batch."""
    config = member.config

    def steps(configured: int) -> int:
        return max(1, round(configured * own / config.optim.global_batch))

    checkpoint = replace(config.checkpoint, every_steps=steps(config.checkpoint.every_steps))
    log = replace(config.log, every_steps=steps(config.log.every_steps))
    return replace(member, config=replace(config, checkpoint=checkpoint, log=log))


def _notes(base: RunConfig, members: Sequence[Member]) -> list[str]:
    """What the user should know before it starts."""
    found, optim = [], members[0].config.optim
    if optim.lr_batch is None:
        found.append(f"optim.lr_batch is unset, as asked for: every batch trains at lr {optim.lr:g}")
    elif base.optim.lr_batch is None:
        found.append(
            f"optim.lr_batch is unset: taken as the config's own batch, {optim.lr_batch}, so that the rate grows with"
            " the batch; optim.lr_batch=null keeps it"
        )
    if base.data.holdout is None:
        found.append("the test images are evaluated, to read the curves: to choose a batch by them, set data.holdout")
    return found


def is_study(folder: Path) -> bool:
    """Whether the folder is one of a time-to-accuracy study."""
    return sweep.is_sweep(folder) and list(sweep.read(folder).grid) == [_BATCH, _SEED]


def _refuse_other_studies(asked: Sweep) -> None:
    if not is_study(asked.path):
        raise ValueError(f"{asked.path} is another study or sweep; give this one another --name. Nothing was touched.")


def report(folder: Path, wanted: Wanted | None = None) -> dict[str, Any]:
    """Write the report on what is there into the folder's report/, and print its tables; return its plain values.

    Args:
        folder: of the study.
        wanted: metric and value; None: those that were asked for last.

    Raises ValueError if the folder is not one of a time-to-accuracy study.
    """
    if not is_study(folder):
        raise ValueError(f"{folder} is not a time-to-accuracy study (a sweep over {_BATCH} and {_SEED})")
    study = curves.read(sweep.read(folder), wanted or wanted_of(folder))
    page: Path | None = None
    trouble: OSError | None = None
    try:
        page = accuracy_report.write(study)
    except OSError as error:  # somebody else's study may be looked at too
        trouble = error
    accuracy_report.show_tables(study)
    if trouble is not None:
        raise OSError(f"the report above is not in {folder}: {trouble}") from trouble
    say(f"report: {page}")
    return accuracy_report.plain(study)


def wanted_of(folder: Path) -> Wanted:
    """Return what the study's last report was read for; before the first, what the command asked for that made it."""
    if (last := accuracy_report.asked_last(folder)) is not None:
        return last
    command = sweep.read(folder).command
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word == _FLAG or word.startswith(f"{_FLAG}="):
            return curves.parse_wanted(following if word == _FLAG else word.partition("=")[2])
    return Wanted(metric="overall", value=None)
