"""The run's own copy of the code, which all of its attempts run. Torch-free."""

from __future__ import annotations

import filecmp
import os
import shutil
from pathlib import Path

import hrdc_hpc
from hrdc_hpc.record.files import fsync_folder, fsync_tree, naming, temporary_beside

_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.py[co]", ".*")


def take(code: Path) -> None:
    """Copy the hrdc_hpc package as imported, and jobs/ where it lies beside it (a checkout), to `code`; whole or not.

    On disk when this returns. Raises OSError (also if `code` exists and is not empty).
    """
    unfinished = temporary_beside(code)
    try:
        for source in _sources():
            for file in _files(source):
                target = unfinished / source.name / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source / file, target)
        with naming(unfinished):
            fsync_tree(unfinished)
        unfinished.rename(code)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    fsync_folder(code.parent)


def changed_files(code: Path) -> list[str]:
    """Files in which the snapshot and the package as imported now differ, e.g. ['hrdc_hpc/launch.py'], sorted."""
    now = {str(Path(s.name, file)): s / file for s in _sources() for file in _files(s)}
    then = {str(file): code / file for file in _files(code)}
    both = now.keys() & then.keys()
    return sorted((now.keys() ^ then.keys()) | {f for f in both if not filecmp.cmp(now[f], then[f], shallow=False)})


def _sources() -> list[Path]:
    package = Path(hrdc_hpc.__file__).parent
    jobs = package.parent / "jobs"
    return [package, *([jobs] if (jobs / "train.py").is_file() else [])]


def _files(folder: Path) -> list[Path]:
    found = []
    for root, folders, files in os.walk(folder):
        left_out = _LEFT_OUT(root, [*folders, *files])
        folders[:] = [name for name in folders if name not in left_out]
        found += [Path(root, name).relative_to(folder) for name in files if name not in left_out]
    return found
