"""How the report of a scaling study names sizes, times and shares. Pure, torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from hrdc_hpc.record.figures import number
from hrdc_hpc.scaling.rows import Mode, Size
from hrdc_hpc.scaling.summary import Range
from hrdc_hpc.scaling.view import StudyView

MODES: dict[Mode, str] = {
    "weak": "Weak scaling: the batch of a {worker} stays, the global batch grows",
    "strong": "Strong scaling: the global batch stays, the batch of a {worker} shrinks",
}


def worker(view: StudyView) -> str:
    """What a rank is to the reader: 'GPU', or 'rank' where there are none."""
    found = [row.found for row in view.rows if row.found is not None]
    if not found:
        return "GPU" if view.config.cluster.gpus_per_node else "rank"
    on_gpus = any(
        one.backend == "nccl" or any(node.peak_device_bytes is not None for node in one.nodes) for one in found
    )
    return "GPU" if on_gpus else "rank"


def within_a_node(view: StudyView) -> bool:
    """Whether every size is on one node, so that GPUs are counted and not nodes."""
    return all(size.nodes == 1 for size in _sizes(view))


def by_nodes(view: StudyView) -> bool:
    """Whether sizes differ in their nodes only."""
    return not within_a_node(view) and len({size.ranks_per_node for size in _sizes(view)}) == 1


def _sizes(view: StudyView) -> list[Size]:
    return [*(row.size for row in view.rows), *(one.size for one in view.predictions)]


def named(view: StudyView, size: Size) -> str:
    """'8 nodes (32 GPUs)', or '4 GPUs' within a node."""
    ranks = counted(size.ranks, worker(view))
    return ranks if within_a_node(view) else f"{counted(size.nodes, 'node')} ({ranks})"


def listed(view: StudyView, sizes: Sequence[Size]) -> str:
    """'1, 2 and 4 nodes', each once; as ranks where sizes differ in more than nodes."""
    nodes = by_nodes(view)
    numbers = list(dict.fromkeys(f"{size.nodes if nodes else size.ranks:,}" for size in sizes))
    what = "node" if nodes else worker(view)
    return f"{joined(numbers)} {what}{'s'[: numbers != ['1']]}"


def joined(words: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def counted(how_many: int, what: str) -> str:
    """'1 node', '1,024 nodes'."""
    return f"{how_many:,} {what}{'s'[: how_many != 1]}"


def hosts(names: Sequence[str]) -> str:
    """Names of nodes as SLURM shortens them: 'gpu[07-09,12], login'."""
    groups: dict[tuple[str, int], list[int]] = {}
    for name in sorted(set(names)):
        stem = name.rstrip("0123456789")
        digits = name[len(stem) :]
        groups.setdefault((stem, len(digits)), []).append(int(digits or 0))
    return ", ".join(_group(stem, width, numbers) for (stem, width), numbers in groups.items())


def _group(stem: str, width: int, numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"{stem}{numbers[0]:0{width}d}" if width else stem
    runs: list[list[int]] = []
    for place in sorted(numbers):
        if runs and place == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], place]
        else:
            runs.append([place])
    return f"{stem}[{','.join('-'.join(f'{end:0{width}d}' for end in run) for run in runs)}]"


def time_text(seconds: float) -> str:
    """'0.4 ms', '3.2 s', '47 min', '5.3 h', '3.1 days'."""
    for limit, unit, name in ((1, 1e-3, "ms"), (120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{_short(seconds / unit)} {name}"
    return f"{_short(seconds / 86400)} days"


def _short(value: float) -> str:
    """Whole numbers without decimals."""
    return f"{value:,.0f}" if value == round(value) else number(value)


def bytes_text(count: int) -> str:
    """'512 B', '227 MB'."""
    for limit, unit, name in ((1e3, 1, "B"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB")):
        if count < limit:
            return f"{_short(count / unit)} {name}"
    return f"{_short(count / 1e12)} TB"


def size_columns(view: StudyView) -> tuple[str, ...]:
    """Heads of the columns that name a size: nodes, if there are several, and GPUs."""
    ranks = f"{worker(view)}s"
    return (ranks,) if within_a_node(view) else ("nodes", ranks)


def size_cells(view: StudyView, size: Size) -> list[str]:
    """What stands in those columns."""
    ranks = f"{size.ranks:,}"
    return [ranks] if within_a_node(view) else [f"{size.nodes:,}", ranks]


def range_text(value: Range, digits: int = 3) -> str:
    """'301 (297-311)', the median and the range; the median alone where they print the same."""
    middle, low, high = (number(figure, digits) for figure in (value.median, value.low, value.high))
    return middle if low == high else f"{middle} ({low}-{high})"


def percent_text(value: Range) -> str:
    """'84.1 % (81.9-85.0 %)'."""
    middle, low, high = (f"{100 * figure:.1f}" for figure in (value.median, value.low, value.high))
    return f"{middle} %" if low == high else f"{middle} % ({low}-{high} %)"
