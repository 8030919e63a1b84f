"""From what a user types to run folders. Torch-free."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hrdc_hpc.cluster.sweep import is_sweep
from hrdc_hpc.record.files import TEMPORARY

RUNS = Path("runs")
"""Where runs are made and looked for unless told otherwise, below the working directory."""
_DEPTH = 3
"""Levels below a folder at which runs are looked for: out_dir/sweep/run and one more."""


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run."""
    return (path / "config.yaml").is_file() and not path.name.startswith(TEMPORARY)


def find(words: Sequence[str], out_dir: Path) -> list[Path]:
    """Return the folders of the runs that are meant, absolute, each once.

    Args:
        words: run folders, folders with runs in them (a sweep), or patterns; each from the working directory or, if
            nothing is there, below `out_dir`. None: all runs below `out_dir`.
        out_dir: where runs are made.

    Raises ValueError for a word that fits no run.
    """
    if not words:
        return _once(_below(out_dir.absolute(), _DEPTH))
    found: list[Path] = []
    for word in words:
        runs = [run for base in (Path(), out_dir) if (run := list(_of(base / word)))]
        if not runs:
            raise ValueError(f"{word}: no run there, nor in {out_dir}{_instead(word, out_dir)}")
        found += runs[0]
    return _once(found)


def one(word: str, out_dir: Path) -> Path:
    """Return the folder of the single run that is meant. Raises ValueError if it is none, or several."""
    runs = find([word], out_dir)
    if len(runs) > 1:
        shown = ", ".join(str(run) for run in runs[:3]) + (", ..." if len(runs) > 3 else "")
        raise ValueError(f"{word}: stands for {len(runs)} runs ({shown}); name one")
    return runs[0]


def hint(word: str) -> str:
    """Return how to find the run that a path was meant to be, to be put behind what is wrong with it."""
    there = RUNS / word
    if is_run(there) or is_sweep(there):
        return f". Did you mean {there}?"
    return ". Which runs there are: python -m hrdc_hpc.status"


def sweeps(words: Sequence[str], out_dir: Path) -> list[Path]:
    """Return the folders of the sweeps among `words`, which are as for `find`; absolute."""
    places = ([base / word for base in (Path(), out_dir)] for word in words)
    found = (next((place for place in some if is_sweep(place)), None) for some in places)
    return list(dict.fromkeys(place.absolute() for place in found if place is not None))


def _of(path: Path) -> Iterator[Path]:
    """Yield the runs that a path or pattern stands for."""
    if path.exists():  # a name may have brackets in it
        yield from _below(path.absolute(), _DEPTH)
        return
    for text in sorted(glob.glob(str(path))):  # noqa: PTH207 - Path.glob takes no absolute patterns
        yield from _below(Path(text).absolute(), 1)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
        return
    if depth == 0:
        return
    try:
        entries = sorted((entry for entry in os.scandir(folder) if entry.is_dir()), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    for entry in entries:
        if not entry.name.startswith("."):
            yield from _below(Path(entry.path), depth - 1)


def _once(runs: Iterable[Path]) -> list[Path]:
    """Return runs without those that are links to others: a sweep has links to its elements, further down."""
    shortest: dict[Path, Path] = {}
    for run in runs:
        real = run.resolve()
        if real not in shortest or len(run.parts) < len(shortest[real].parts):
            shortest[real] = run
    return list(shortest.values())


def _instead(word: str, out_dir: Path) -> str:
    names = {run.name: run for run in _below(out_dir.absolute(), _DEPTH)}
    close = difflib.get_close_matches(Path(word).name, names, n=3)
    if close:
        return f". Did you mean {', '.join(close)}?"
    others = f"; {len(names)} other run{'s'[: len(names) != 1]} there: python -m hrdc_hpc.status"
    return others if names else ""
