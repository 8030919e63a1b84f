"""Checkpoints: whole and verified, or not used.

Saving: into a temporary folder, each file flushed and fsynced, the manifest last, the folder fsynced, the lease
checked, renamed, the parent fsynced. Only then older ones are deleted. A kill at any moment leaves what was committed
before, and at most a `.tmp-` folder that the next holder of the lease sweeps away.

A whole checkpoint is never replaced. Where one of the same step is there already (the run was rolled back and came to
this step again, or was told to stop right after a save), it is kept and the new one is dropped: a run is a function of
its config, so both lead to the same end, and no rename replaces a folder with something in it atomically. Only the best
evaluation that it names may be another now (the run was told to stop before it had evaluated this step): the manifest
is replaced then, in one rename. Anything else in that place is set aside.

The checkpoint of the best evaluation is kept beside the last ones. Which step that is stands in every manifest, so the
newest one knows it after any kill; the one that was best before is deleted only once a checkpoint that names the new
one is committed.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hrdc_hpc.engine.checkpoint_files import (
    MANIFEST,
    STATE,
    Best,
    Damaged,
    HashedFile,
    Manifest,
    amend,
    best_step,
    better,
    folder_name,
    list_checkpoints,
    look,
    plain_about,
    problem,
    read_state,
    render,
    set_aside,
    step_of,
    verify,
    with_best,
)
from hrdc_hpc.engine.checkpoint_state import HostCopies, on_host, tensor_bytes
from hrdc_hpc.record.files import TEMPORARY, fsync_folder

__all__ = [
    "Best", "Found", "Saved", "Saver", "best_step", "better", "latest", "list_checkpoints", "load", "look", "problem",
    "save", "step_of", "sweep",
]  # fmt: skip

log = logging.getLogger(__name__)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint."""

    path: Path
    step: int
    bytes: int
    seconds: float
    """From the copy in host memory to the commit."""


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay."""

    last: int
    """So many of the newest."""
    step: int | None = None
    """And the one of this step."""


@dataclass(frozen=True)
class Found:
    """A checkpoint that was verified."""

    path: Path
    step: int
    about: dict[str, Any]


def save(
    folder: Path, step: int, state: dict[str, Any], about: Mapping[str, Any], *, lease_check: Callable[[], None],
    keep_last: int, best: Best | None = None, keep_best: bool = False,
) -> Saved:  # fmt: skip
    """Commit `state` as the checkpoint of `step`, then delete all but the last `keep_last` and, if so told, the best.

    `about` (config, data fingerprint, world size; plain JSON) stands in the manifest. `lease_check` is called before
    the rename and before anything is deleted; what it raises comes through, and nothing was changed. Raises TypeError
    for a state that could not be loaded without running code, RuntimeError if the disk is full or fails: the
    checkpoints from before are untouched then.
    """
    kept = Retention(keep_last, best.step if best and keep_best else None)
    return _commit(folder, step, on_host(state), with_best(plain_about(about), best), lease_check, kept)


class Saver:
    """Saves one state after the other, in the background if asked to; equally durable either way.

    In the background means: `save` copies the state to host memory, which takes as much memory as the state, and one
    thread writes it. One save is under way at most; the next waits for it. An error of the writer is raised by the
    next call of `save`, `wait` or `close`. `on_saved` is called with each committed checkpoint, in the writer's thread.
    """

    def __init__(
        self, folder: Path, *, asynchronous: bool, keep_last: int, lease_check: Callable[[], None],
        keep_best: bool = False, on_saved: Callable[[Saved], None] | None = None,
    ) -> None:  # fmt: skip
        self.last: Saved | None = None
        """The last checkpoint that was committed."""
        self._folder = folder
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._lease_check = lease_check
        self._on_saved = on_saved
        self._copies = HostCopies()
        # not a daemon: the interpreter waits for a write under way before it ends
        self._writer = ThreadPoolExecutor(1, "checkpoint") if asynchronous else None
        self._under_way: Future[None] | None = None

    def save(
        self, step: int, state: dict[str, Any], about: Mapping[str, Any], *, best: Best | None = None
    ) -> float:  # fmt: skip
        """Save; return the seconds for which the caller was held up. `state` may change as soon as it returns.

        `best` is the best evaluation up to this step; its checkpoint stays where `keep_best` says so.
        """
        start = time.perf_counter()
        self.wait()
        told = with_best(plain_about(about), best)
        kept = Retention(self._keep_last, best.step if best and self._keep_best else None)
        if self._writer is None:
            self._write(step, on_host(state), told, kept)
        else:
            self._under_way = self._writer.submit(self._write, step, self._copies.take(state), told, kept)
        return time.perf_counter() - start

    def wait(self) -> None:
        """Return once everything handed over is committed; raises what the writer raised."""
        if self._under_way is not None:
            try:
                self._under_way.result()
            finally:
                if self._under_way.done():  # not so if the wait was interrupted
                    self._under_way = None

    def close(self) -> None:
        """Wait as `wait`, and end the writer."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.shutdown()

    def _write(self, step: int, state: dict[str, Any], about: dict[str, Any], kept: Retention) -> None:
        self.last = _commit(self._folder, step, state, about, self._lease_check, kept)
        if self._on_saved is not None:
            self._on_saved(self.last)


def latest(folder: Path, *, on_damaged: Callable[[Path, str], None]) -> Found | None:
    """Return the newest whole checkpoint, verified to the last byte; None if there is none of any kind.

    Newer ones that are damaged are renamed to damaged-<name>-<n>; `on_damaged` gets the path that it had, and what was
    wrong, where it is now and what is used instead. Only the holder of the lease may call this. Raises RuntimeError,
    and renames nothing, if there are checkpoints and none is whole: to start from step 0 is for the user to decide.
    """
    damaged: list[tuple[Path, str]] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            manifest = verify(path)
        except Damaged as why:
            damaged.append((path, str(why)))
            continue
        for bad, what in damaged:
            aside = set_aside(bad)
            on_damaged(bad, f"{what}; it is kept as {aside.name}, and {path.name} is used instead")
        return Found(path, manifest.step, manifest.about)
    if damaged:
        reasons = "\n".join(f"  {path.name}: {what}" for path, what in damaged)
        raise RuntimeError(
            f"{folder}: no checkpoint is whole:\n{reasons}\n"
            "Put a whole one there from a backup, or remove these to start the run from step 0."
        )
    return None


def load(path: Path) -> dict[str, Any]:
    """Return the state in a checkpoint, on the CPU. Runs no code from it; loads the very bytes that it verified.

    Raises RuntimeError if it is damaged or missing.
    """
    try:
        content = read_state(path)
    except Damaged as why:
        raise RuntimeError(f"{path} is damaged: {why}. Use another checkpoint of the run") from why
    state = torch.load(content, map_location="cpu", weights_only=True)
    assert isinstance(state, dict)
    return state


def sweep(folder: Path) -> None:
    """Remove what saves that were killed left behind. Only the holder of the lease may do so, before it saves."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _commit(
    folder: Path, step: int, state: dict[str, Any], about: dict[str, Any], lease_check: Callable[[], None],
    retention: Retention,
) -> Saved:  # fmt: skip
    assert retention.last >= 1, retention
    start = time.perf_counter()
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        fsync_folder(folder.parent)
    final = folder / folder_name(step)
    kept = _whole_there(final)
    aside = folder / f"{TEMPORARY}{final.name}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        manifest = kept or _write(aside, step, state, about)
        lease_check()
        if kept is None:
            _move_in(aside, final)
            fsync_folder(folder)
        elif (best := Best.of(about)) and best != Best.of(kept.about):
            amend(final, replace(kept, about=with_best(kept.about, best)))
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        lease_check()  # whoever has the lease now may have swept our folder away
        raise RuntimeError(_could_not(final, error, tensor_bytes(state))) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # gone already, if all went well
    seconds = time.perf_counter() - start
    _delete_old(folder, final, lease_check, retention)
    return Saved(final, step, manifest.bytes, seconds)


def _write(aside: Path, step: int, state: dict[str, Any], about: dict[str, Any]) -> Manifest:
    """Fill a temporary folder; when this returns it is on disk."""
    aside.mkdir()
    file = HashedFile(aside / STATE)
    try:
        torch.save(state, file)  # type: ignore[arg-type]  # all that it asks of a file is write and flush
        manifest = Manifest(step, about, {STATE: file.finish()})
    finally:
        file.close()
    with (aside / MANIFEST).open("xb") as last:
        last.write(render(manifest))
        last.flush()
        os.fsync(last.fileno())
    fsync_folder(aside)
    return manifest


def _move_in(aside: Path, final: Path) -> None:
    """Rename to the final name; what is there and not whole makes way, what is whole stays."""
    try:
        aside.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if _whole_there(final) is None:
            log.warning("%s was in the way of a checkpoint, and is kept as %s", final, set_aside(final).name)
            aside.rename(final)


def _whole_there(path: Path) -> Manifest | None:
    if not os.path.lexists(path):
        return None
    try:
        return verify(path)
    except Damaged:
        return None


def _delete_old(folder: Path, saved: Path, lease_check: Callable[[], None], retention: Retention) -> None:
    """Delete what looks whole and is not to stay, never the one just saved; leave alone what does not look whole."""
    whole = _looking_whole(folder)
    old = [path for path in whole[: -retention.last] if path != saved and step_of(path) != retention.step]
    if not old:
        return
    lease_check()
    for path in old:
        dying = path.with_name(f"{TEMPORARY}delete-{path.name}-{secrets.token_hex(4)}")
        try:
            path.rename(dying)  # so that none is ever found half deleted
            shutil.rmtree(dying)
        except OSError as error:
            log.warning("could not delete the old checkpoint %s: %s", path, error)


def _looking_whole(folder: Path) -> list[Path]:
    """Checkpoints with a sound manifest and files of the right size, oldest first."""
    whole = []
    for path in list_checkpoints(folder):
        try:
            look(path)
        except (Damaged, RuntimeError, OSError):
            continue
        whole.append(path)
    return whole


def _could_not(final: Path, error: OSError, needed: int) -> str:
    good = _looking_whole(final.parent)
    text = f"{final}: could not save: {error.strerror or error}."
    if error.errno in _NO_ROOM:
        free = shutil.disk_usage(final.parent).free
        text += (
            f" It takes about {needed} bytes, and {free} bytes are free there (a quota or a limit may allow less)."
            " Make room, or keep fewer with checkpoint.keep_last, then start the run again."
        )
    return f"{text} Last good checkpoint: {good[-1] if good else 'none yet'}; it is untouched."
