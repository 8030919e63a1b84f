"""Index arrays kept between starts, so that a second start need not read every header. Torch-free.

They lie in $XDG_CACHE_HOME/hrdc_hpc (~/.cache/hrdc_hpc): a data set is often read-only. A cache only ever saves time:
where it cannot be read or written, the work is done again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FORMAT = 1
_log = logging.getLogger(__name__)


def _file(kind: str, root: Path, split: str) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    name = hashlib.blake2b(os.fsencode(f"{_FORMAT}\0{kind}\0{root.resolve()}\0{split}"), digest_size=12).hexdigest()
    return base / "hrdc_hpc" / f"index-{name}.npz"


def load(kind: str, root: Path, split: str) -> dict[str, NDArray[Any]] | None:
    """Return the arrays that were saved for this folder and split, or None."""
    try:
        with np.load(_file(kind, root, split), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def save(kind: str, root: Path, split: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Keep arrays for the next start; several processes may do so at once."""
    aside: Path | None = None
    try:
        path = _file(kind, root, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.tmp")
        with aside.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        aside.replace(path)
    except (OSError, RuntimeError) as error:
        _log.info("the index of %s is not cached: %s", root, error)
        if aside is not None:
            aside.unlink(missing_ok=True)
