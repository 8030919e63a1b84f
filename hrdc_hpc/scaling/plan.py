"""What a study is to measure: sizes, modes and repeats as rows, and the config of each row's run. Torch-free.

weak: images per rank as the config has them on its own number of ranks; strong: the config's global batch. Where both
come to the same batch on the same ranks, they are one run, which counts in both modes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from hrdc_hpc.cluster.shape import ranks_per_node
from hrdc_hpc.config import registry
from hrdc_hpc.config.batch import refuse_unfit_batch
from hrdc_hpc.config.nodes import node_range
from hrdc_hpc.config.schema import Measure, RunConfig
from hrdc_hpc.scaling.rows import Mode, Size

MODES: tuple[Mode, ...] = get_args(Mode)
KEYS = ("nodes", "ranks_per_node", "global_batch", "repeat")
"""What tells runs of a study apart: the keys of its sweep."""
SETTINGS = {
    "log.tensorboard": "false",
    "cluster.time_min": "30",
    "cluster.array_parallelism": "1",
    "cluster.requeue": (
        "{preemptions: 3, time_limits: 0, failures: 0, hangs: 0, bad_nodes: 2, without_progress_preempted: 4}"
    ),
}
"""Of a measured run, unless the command line says otherwise: short, one of a size at a time, and what ends by itself
is told instead of being tried again."""
_MOST = 4096
"""Numbers that a range may stand for."""
_SHOWN = 16
"""Of them, in a prediction."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A row: one repeat of a size, and the run that finds it out."""

    size: Size
    repeat: int
    """From 1."""
    run: str
    """Name of its run folder."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the command line says of sizes and batches; None: as the config has it."""

    nodes: Sequence[int] | None = None
    gpus: Sequence[int] | None = None
    """Per node, with a rank on each."""
    ranks: Sequence[int] | None = None
    """Per node; GPUs as in the config."""
    modes: Sequence[Mode] = ("weak",)
    repeats: int = 1
    batch_per_rank: int | None = None
    """Mode weak."""
    global_batch: int | None = None
    """Mode strong."""
    images: Literal["real", "resident"] | None = None


def numbers(text: str) -> list[int]:
    """Read '1,2,4' and '1-4' and both: numbers above 0, each once. Raises ValueError with what is allowed."""
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*([1-9][0-9]*)(?:-([1-9][0-9]*))?\s*", part)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if not first <= last < first + _MOST:
            raise ValueError(f"must be numbers above 0 and ranges, such as 1,2,4 or 1-4; got {text!r}")
        found += range(first, last + 1)
    _refuse_twice(found)
    return found


def thinned(found: Sequence[int]) -> list[int]:
    """Return numbers as they are or, of more than a table can hold, the first, its doublings and the last."""
    if len(found) <= _SHOWN:
        return list(found)
    there, kept = sorted(found), [min(found)]
    while 2 * kept[-1] < there[-1]:
        kept.append(min(number for number in there if number >= 2 * kept[-1]))
    return kept if kept[-1] == there[-1] else [*kept, there[-1]]


def modes(text: str) -> list[Mode]:
    """Read 'weak,strong'. Raises ValueError with what is allowed."""
    found = [part.strip() for part in text.split(",")]
    if unknown := [part for part in found if part not in MODES]:
        raise ValueError(f"must be {' or '.join(MODES)}, or both with a comma; got {unknown[0]!r}")
    _refuse_twice(found)
    return [mode for mode in MODES if mode in found]


def _refuse_twice(found: Sequence[object]) -> None:
    if twice := [value for value, number in Counter(found).items() if number > 1]:
        raise ValueError(f"{twice[0]} is there twice; leave one out")


def sizes(shape: Shape, training: RunConfig, measured: RunConfig, *, local: bool) -> list[Size]:
    """Return the sizes in order, small ones first.

    Args:
        shape: the command line's.
        training: the config as it would be trained, whose batch on its own ranks is kept by the mode weak.
        measured: the config with what the command line says of nodes' ranks.
        local: whether the runs are on this machine.

    Raises ValueError with all that is wrong.
    """
    problems = list(_problems(shape, training, local=local))
    if problems:
        raise ValueError("\n".join(problems))
    batches = {"weak": _batch_per_rank(shape, training), "strong": shape.global_batch or training.optim.global_batch}
    found = []
    for nodes in sorted(shape.nodes or [1]):
        for ranks in sorted(shape.gpus or shape.ranks or [ranks_per_node(measured.cluster)]):
            for mode in shape.modes:
                batch = batches[mode] * (nodes * ranks if mode == "weak" else 1)
                found.append(Size(nodes=nodes, ranks_per_node=ranks, mode=mode, global_batch=batch))
    return found


def _problems(shape: Shape, training: RunConfig, *, local: bool) -> list[str]:
    found = []
    if not (shape.nodes or shape.gpus or shape.ranks):
        found.append("which sizes? --nodes 1,2,4, or within a node --gpus 1,2,4 (without GPUs: --ranks-per-node 1,2,4)")
    if shape.gpus and shape.ranks:
        found.append("--gpus puts a rank on each GPU: leave --ranks-per-node out")
    if local and shape.nodes not in (None, [1]):
        found.append(
            f"--nodes {','.join(map(str, shape.nodes or ()))}: --cluster local is this machine alone; leave it out, and"
            " give --gpus 1,2,4 (without GPUs: --ranks-per-node 1,2,4)"
        )
    if shape.batch_per_rank and "weak" not in shape.modes:
        found.append("--batch-per-rank is for --mode weak; leave it out, or add that mode")
    if shape.global_batch and "strong" not in shape.modes:
        found.append("--global-batch is for --mode strong; leave it out, or add that mode (weak: --batch-per-rank)")
    own = _own_ranks(training)
    if "weak" in shape.modes and shape.batch_per_rank is None and training.optim.global_batch % own:
        found.append(
            f"--mode weak keeps the images per rank, and optim.global_batch {training.optim.global_batch} over the"
            f" config's own {own} ranks is no whole number of them; say it: --batch-per-rank"
            f" {max(1, training.optim.global_batch // own)}"
        )
    return found


def _own_ranks(training: RunConfig) -> int:
    """Ranks that the config asks for by itself; of a range of nodes, on the fewest."""
    return node_range(training.cluster.nodes)[0] * ranks_per_node(training.cluster)


def _batch_per_rank(shape: Shape, training: RunConfig) -> int:
    return shape.batch_per_rank or training.optim.global_batch // _own_ranks(training)


def rows(sizes: Sequence[Size], repeats: int, there: Sequence[Planned] = ()) -> list[Planned]:
    """Return the rows of all repeats of the sizes.

    Args:
        sizes: as `sizes` returns them.
        repeats: of each.
        there: rows that the study has already; their runs are found again.

    Raises ValueError if a run of the same name has another batch.
    """
    runs = {_what(row.size, row.repeat): row.run for row in there}
    taken = {row.run: row for row in there}
    found = []
    for size in sizes:
        for repeat in range(1, repeats + 1):
            name = f"{size.mode}-{size.nodes}x{size.ranks_per_node}-r{repeat}"
            run = runs.setdefault(_what(size, repeat), name)
            row = Planned(size=size, repeat=repeat, run=run)
            other = taken.setdefault(run, row).size.global_batch
            if other != size.global_batch:
                raise ValueError(
                    f"the study has {run} with a global batch of {other}, not {size.global_batch}: figures of both"
                    " would not go together. Give this study another --name, or take back the change of the batch"
                )
            found.append(row)
    return found


def _what(size: Size, repeat: int) -> tuple[int, ...]:
    return size.nodes, size.ranks_per_node, size.global_batch, repeat


def values(row: Planned) -> dict[str, str]:
    """Return what the row's run is, by KEYS."""
    return dict(zip(KEYS, map(str, _what(row.size, row.repeat)), strict=True))


def grid(rows: Sequence[Planned]) -> dict[str, list[str]]:
    """Return the values of all rows, by KEYS."""
    return {key: list(dict.fromkeys(values(row)[key] for row in rows)) for key in KEYS}


def unfit(measured: RunConfig, size: Size) -> str:
    """Why the batch cannot be had for this size; '' if it can. The other sizes go on without it."""
    batch, pieces = size.global_batch, measured.optim.accumulation
    dataset = measured.data.dataset
    file = registry.module("hrdc_hpc.data.datasets", dataset.name)
    known = file.known(dataset.options or file.Options()) if hasattr(file, "known") else None
    if known is not None and batch > known[1]:
        return f"optim.global_batch: {batch} is more than the {known[1]} training images; take fewer images per rank"
    if batch < pieces:
        return f"optim.accumulation: {pieces} pieces of {batch} images; set it to at most {max(1, batch // size.ranks)}"
    try:
        refuse_unfit_batch(measured.model, replace(measured.optim, global_batch=batch), size.ranks)
    except ValueError as error:
        return str(error)
    return ""


def config_of(measured: RunConfig, row: Planned, shape: Shape) -> RunConfig:
    """Return the config of a row's run, whose batch must fit. Its folder is below the study's, which has the name."""
    size = row.size
    cluster = replace(measured.cluster, nodes=size.nodes, ranks_per_node=size.ranks_per_node)
    if shape.gpus:
        cluster = replace(cluster, gpus_per_node=size.ranks_per_node)
    measure = replace(measured.measure or Measure(), repeat=row.repeat)
    if shape.images:
        measure = replace(measure, images=shape.images)
    return replace(
        measured, name=row.run, out_dir=measured.out_dir / measured.name, cluster=cluster, measure=measure,
        optim=replace(measured.optim, global_batch=size.global_batch),
    )  # fmt: skip


def table(rows: Sequence[Planned], hours: Mapping[str, float], unit: str, acts: Mapping[str, str]) -> list[list[str]]:
    """Return the plan as cells, a line for each size, the head first.

    Args:
        rows: all of them.
        hours: by run, the most that it may use.
        unit: of the hours.
        acts: by run, what becomes of it, in words; the same words of several repeats are told once.

    Runs that count in both modes use nothing a second time.
    """
    told: set[str] = set()
    lines = [["mode", "nodes", "ranks", "batch", "per rank", "repeats", unit, "what is done"]]
    for size in dict.fromkeys(row.size for row in rows):
        group = [row for row in rows if row.size == size]
        counted = Counter("the same runs" if row.run in told else acts[row.run] for row in group)
        what = "; ".join(words if len(counted) == 1 else f"{number} {words}" for words, number in counted.items())
        used = sum(hours.get(row.run, 0.0) for row in group if row.run not in told)
        told |= {row.run for row in group}
        lines.append(
            [
                size.mode, str(size.nodes), str(size.ranks), str(size.global_batch),
                f"{size.global_batch / size.ranks:g}", str(len(group)), f"{used:.3g}", what,
            ]
        )  # fmt: skip
    return lines
