"""The report of a study's folder: its rows, the model fitted to them, and what the report is made of. Torch-free."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from hrdc_hpc.cluster import limits
from hrdc_hpc.cluster.console import say
from hrdc_hpc.config import registry
from hrdc_hpc.config.load import loads
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.scaling import collect, modelled, study
from hrdc_hpc.scaling.predict import predict_on_paper
from hrdc_hpc.scaling.report.write import tell, write_report
from hrdc_hpc.scaling.rows import Size
from hrdc_hpc.scaling.study import Study
from hrdc_hpc.scaling.view import Limits, StudyView


def report(path: Path, *, wanted: float | None = None, nodes: Sequence[int] | None = None) -> None:
    """Write the report on what is there into the study's report/, and say it.

    Args:
        path: the study's folder.
        wanted: efficiency that more nodes must keep, 0 to 1; None: as the study was given.
        nodes: numbers of nodes to predict; None: twice and four times the most that were measured.

    Raises ValueError if the folder is not that of a study.
    """
    _publish(view_of(study.read(path), wanted=wanted, nodes=nodes), path / "report")


def view_of(there: Study, *, wanted: float | None = None, nodes: Sequence[int] | None = None) -> StudyView:
    """Return a study as its report shows it; arguments as for `report`."""
    rows = collect.rows(there)
    config = loads(there.config, place=f"{there.path}/study.json")
    fit, predictions, troubles = modelled.model(config, rows, nodes)
    return StudyView(
        name=there.path.name, config=config, rows=rows, train_images=train_images(config), predictions=predictions,
        fit=fit, limits=_limits(config), wanted=there.wanted if wanted is None else wanted,
        command=_typed(there.command), date=_now(), warnings=troubles,
    )  # fmt: skip


def on_paper(
    config: RunConfig, sizes: Sequence[Size], *, wanted: float, command: Sequence[str], classes: int | None,
    folder: Path | None,
) -> None:  # fmt: skip
    """Say what a config's cluster profile lets one expect of sizes, and write it as a report if there is a folder.

    `classes`: of the data set, where it does not say so itself. Raises ValueError where the profile, the backbone or
    the data set does not tell what is needed.
    """
    sizes, without = _with_images(sizes)
    found = predict_on_paper(config, sizes, classes=classes)
    fit, predictions = modelled.paper(sizes, found)
    view = StudyView(
        name=config.name, config=config, train_images=train_images(config), predictions=predictions,
        fit=fit, limits=None, wanted=wanted, command=_typed(command), date=_now(), warnings=[*found.warnings, *without],
    )  # fmt: skip
    _publish(view, folder)


def _with_images(sizes: Sequence[Size]) -> tuple[list[Size], list[str]]:
    """Sizes in which each rank has an image, and what is said of the others. ValueError if there are only others."""
    kept = [size for size in sizes if size.global_batch >= size.ranks]
    lost = [size for size in sizes if size not in kept]
    if not lost:
        return kept, []
    said = (
        f"a global batch of {lost[0].global_batch:,} images leaves ranks without any from"
        f" {lost[0].nodes:,} node{'s'[: lost[0].nodes != 1]} of {lost[0].ranks_per_node} on"
    )
    if not kept:
        raise ValueError(f"--mode {lost[0].mode}: {said}; raise --global-batch, or predict fewer nodes")
    return kept, [f"Left out in {lost[0].mode} scaling: {said}."]


def _publish(view: StudyView, folder: Path | None) -> None:
    page: Path | None = None
    trouble: OSError | None = None
    try:
        page = write_report(folder, view)[0] if folder else None
    except OSError as error:  # somebody else's study may be looked at too, and a disk may be full
        trouble = error
    tell(view)
    if trouble is not None:
        raise OSError(f"the report above is not in {folder}: {trouble}") from trouble
    if page:
        say(f"report: {page}")


def _typed(command: Sequence[str]) -> str:
    return shlex.join(["python", *command[1:]])


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z")


def train_images(config: RunConfig) -> int | None:
    """Training images of an epoch; None where the data set cannot be asked, as on a login node without its files."""
    file = registry.module("hrdc_hpc.data.datasets", config.data.dataset.name)
    options = config.data.dataset.options if config.data.dataset.options is not None else file.Options()
    known = file.known(options) if hasattr(file, "known") else None
    try:
        images = known[1] if known else len(file.open(options, "train", config.data.on_bad_image, trust_cache=True))
    except (ValueError, OSError, ImportError, RuntimeError):
        return None
    held_out = config.data.holdout.share if config.data.holdout else 0.0
    return round(images * (1 - held_out))


def _limits(config: RunConfig) -> Limits | None:
    """What the partition allows, where SLURM is there to be asked."""
    facts = limits.ask(accounting=False)
    asked = config.cluster.partition
    for one in facts.partitions:
        if one.name == asked or (asked is None and one.default):
            return Limits(partition=one.name, max_nodes=one.max_nodes, max_time_min=one.max_time_min)
    return None
