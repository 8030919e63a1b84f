"""Folders of this user on a node's own disk or memory: kept from run to run, shared, and removed to make room.

    TO/hrdc_hpc-<uid>/<name>-<key>/use   locked by every process that uses what is in the folder

Locks are flock(2)'s, which the kernel frees when their holder dies. Where a disk has too little room, folders make way,
the least recently used first, but only this user's, and only those that no process has locked. Torch-free.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hrdc_hpc.record.files import TEMPORARY

log = logging.getLogger(__name__)

_USE = "use"
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?::-([^}]*))?\})")


def expand(text: str) -> str:
    """Fill in $NAME, ${NAME} and ${NAME:-default} from the environment. ValueError for a variable that is not set."""

    def value(match: re.Match[str]) -> str:
        name, default = match[1] or match[2], match[3]
        found = os.environ.get(name) or default
        if not found:
            raise ValueError(f"${name} is not set on this node")
        return found

    return _VARIABLE.sub(value, text)


def node_folder(to: str | None, key: str) -> Path:
    """Return this user's folder below `to` on this node, made if need be; None: below $TMPDIR. `key` names the setting.

    Raises ValueError, OSError.
    """
    if to is None and not os.environ.get("TMPDIR"):
        raise ValueError(f"no folder on the node is known: set {key}, or cluster.scratch")
    above = Path(expand(to or "$TMPDIR"))
    if not above.is_absolute():
        raise ValueError(f"{key}: must be an absolute path on the node; got {above}")
    path = above / f"hrdc_hpc-{os.getuid()}"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.stat().st_uid != os.getuid():
        raise ValueError(f"{path}: belongs to another user; set {key} to another folder")
    return path


def _flock(descriptor: int, kind: int) -> bool:
    """Lock at once or not at all."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[int | None]:
    """Make a file if need be and lock it; yields its descriptor, or None if another process has it locked."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor if _flock(descriptor, kind) and is_at(descriptor, path) else None
    finally:
        os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file still has this name: between open and lock it may have been renamed or removed."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def hold(folder: Path) -> int | None:
    """Make a folder if need be and keep it from being removed while the descriptor that is returned is open.

    None: it is being removed just now.
    """
    folder.mkdir(exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(folder / _USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    if _flock(descriptor, fcntl.LOCK_SH) and is_at(descriptor, folder / _USE):
        os.utime(descriptor)
        return descriptor
    os.close(descriptor)
    return None


def make_room(above: Path, lacking: Callable[[], int]) -> bool:
    """Remove folders that nobody uses, the oldest first, while bytes are lacking; whether none are then."""
    if lacking() > 0:
        for folder in _by_age(above):
            if lacking() > 0 and remove_unused(folder):
                log.info("removed %s, which nobody used, to make room", folder)
    return lacking() <= 0


def _by_age(above: Path) -> list[Path]:
    """Folders, the least recently used first."""

    def used(folder: Path) -> float:
        try:
            return (folder / _USE).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    return sorted((path for path in above.iterdir() if path.is_dir()), key=used)


def remove_unused(folder: Path) -> bool:
    """Remove a folder unless a process uses it; whether it did."""
    try:
        with locked(folder / _USE) as lock:
            if lock is None:
                return False
            gone = folder.with_name(f"{TEMPORARY}{folder.name}-{os.getpid()}")
            folder.rename(gone)  # at once: who comes now makes a new one
            shutil.rmtree(gone)
    except FileNotFoundError:  # another process was faster
        return False
    return True
