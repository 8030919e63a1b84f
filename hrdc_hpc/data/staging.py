"""A node's own copy of a packed data set, made while training reads the shared one. Torch-free.

    TO/hrdc_hpc-<uid>/train-<key>/use                    locked by every process that reads these copies
    TO/hrdc_hpc-<uid>/train-<key>/shard-00000.tar        whole, if it is there under this name
    TO/hrdc_hpc-<uid>/train-<key>/shard-00000.tar.json   its length and checksum, and when they were last compared
    TO/hrdc_hpc-<uid>/train-<key>/.tmp-shard-00000.tar   being copied, by whoever has it locked

The key stands for lengths and checksums of a split's shards: whoever trains on the same images finds the same copies.
All ranks of a node, of any number of jobs, share the work: each takes a shard that nobody has locked, and those that
others made are seen to be whole. Locks are flock(2)'s, which the kernel frees when their holder dies.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrdc_hpc.config.node_local import Staging as Options
from hrdc_hpc.data.node_folder import hold, is_at, locked, make_room, node_folder
from hrdc_hpc.data.packed import ShardFiles
from hrdc_hpc.record.files import TEMPORARY, fsync_folder, naming, write_json_durably

log = logging.getLogger(__name__)

_PIECE = 1 << 22
"""Bytes that are copied at a time."""
_SYNC = 1 << 27
"""Bytes after which the disk is waited for: or the last of them would have to wait for all."""
_LOOK_S = 0.5
"""How often a process looks whether others have finished a shard."""
_SAY_S = 10.0
_HEED_S = 0.1
"""How long a copier that is held back may not heed a stop."""
_BURST_S = 1.0
"""What a process did not copy in the last second may be made up for, no more."""
_LEAVE_S = 0.5
"""How long `close` waits for a read or write that is under way. A server that hangs is not waited for."""
_FRESH_S = 86400.0
"""How long a comparison of checksums counts."""

Tell = Callable[[Mapping[str, Any]], None]


class _Told(Exception):
    """It is time to leave."""


class _NoRoom(Exception):
    """The disk has too little room."""


class _Damaged(Exception):
    """A shard is not as it was packed."""


def _key(files: ShardFiles) -> str:
    told = [(shard.file, shard.bytes, shard.checksum) for shard in files.shards]
    return f"{files.folder.name}-{hashlib.blake2b(json.dumps(told).encode(), digest_size=10).hexdigest()}"


@dataclass(frozen=True)
class _Shard:
    """A shard and the place of its copy."""

    files: ShardFiles
    number: int
    folder: Path

    @property
    def bytes(self) -> int:
        return self.files.shards[self.number].bytes

    @property
    def checksum(self) -> str:
        return self.files.shards[self.number].checksum

    @property
    def copy(self) -> Path:
        return self.folder / self.files.shards[self.number].file

    @property
    def aside(self) -> Path:
        return self.copy.with_name(f"{TEMPORARY}{self.copy.name}")

    @property
    def note(self) -> Path:
        return self.copy.with_name(f"{self.copy.name}.json")

    def known_whole(self, *, verify: bool) -> bool:
        """Whether the copy is there and noted to be whole; with `verify`, since a day at most."""
        try:
            told, there = json.loads(self.note.read_bytes()), self.copy.stat()
        except (OSError, ValueError):
            return False
        as_noted = {"bytes": there.st_size, "changed_ns": there.st_mtime_ns, "checksum": self.checksum}
        if not isinstance(told, dict) or there.st_size != self.bytes or {**told, **as_noted} != told:
            return False
        return not verify or abs(time.time() - float(told.get("compared", 0))) < _FRESH_S

    def note_whole(self, path: Path) -> None:
        """Note that the checksum of a file, which is the copy or becomes it now, was compared just now."""
        there = path.stat()
        told = {"bytes": there.st_size, "changed_ns": there.st_mtime_ns, "checksum": self.checksum}
        write_json_durably(self.note, {**told, "compared": time.time(), "source": str(self.files.source(self.number))})

    def missing(self) -> int:
        """Bytes that the disk must still find room for."""
        if self.copy.exists():
            return 0
        try:
            return max(0, self.bytes - 512 * self.aside.stat().st_blocks)
        except FileNotFoundError:
            return self.bytes


class Staging:
    """Copies shards in a thread, and has each read from its copy once that is whole.

    Whatever goes wrong on the node is a warning, and training goes on from the shared file system.
    """

    def __init__(
        self,
        splits: Sequence[ShardFiles],
        options: Options,
        *,
        rank: int = 0,
        world_size: int = 1,
        local_world_size: int = 1,
        told: Callable[[], bool] = lambda: False,
        tell: Tell = lambda _: None,
        quiet: bool = False,
    ) -> None:
        """Start. `told`: asked often whether to leave; `tell` is called with records of the progress.

        A `quiet` process leaves it to another one on its node to log the progress.
        """
        self._splits, self._options, self._told, self._tell = tuple(splits), options, told, tell
        self._turn = rank / world_size
        """Where in the list of shards this process begins, so that nodes do not all read the same file at once."""
        self._rate = options.mb_per_s * 1e6 / local_world_size if options.mb_per_s is not None else None
        self._level = logging.DEBUG if quiet else logging.INFO
        self._quiet = quiet
        self._closed = threading.Event()
        self._began = self._last_said = time.monotonic()
        self._total = sum(shard.bytes for files in splits for shard in files.shards)
        self._found = self._whole = self._under_way = self._copied = 0
        """Bytes: there when it began; read from copies by now; of the shard that is being copied; copied."""
        self._asked = 0.0
        self._due = self._began
        """When what was copied so far may have been, at the rate that is allowed."""
        self.state = "copying"
        """copying, whole, damaged (a shard), no room, failed, stopped."""
        self._users: list[int] = []
        self._thread = threading.Thread(target=self._work, name="hrdc-staging", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait until it has come to its end; whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def close(self) -> None:
        """End the thread; copies that are not whole are left to the next start. Copies may be removed from here on."""
        early = not self._closed.is_set() and self._thread.is_alive()
        self._closed.set()
        if self.join(_LEAVE_S) and early:
            self._say(self.state)
        users, self._users = self._users, []
        for descriptor in users:
            os.close(descriptor)

    # the thread

    def _work(self) -> None:
        try:
            self.state = self._stage()
        except _Told:
            self.state = "stopped"
        except _NoRoom as lack:
            self.state = "no room"
            self._warn(str(lack))
        except (OSError, ValueError) as error:
            self.state = "failed"
            self._warn(str(error))
        if not self._closed.is_set():  # or nobody may listen any more
            self._say(self.state)

    def _warn(self, what: str) -> None:
        if not self._quiet:
            log.warning("staging: %s. What is not copied is read from the shared file system.", what)

    def _stage(self) -> str:
        above = node_folder(self._options.to, "data.staging.to")
        waiting = [
            _Shard(files, number, folder)
            for files, folder in [(files, self._use(above / _key(files))) for files in self._splits]
            for number in range(len(files.shards))
        ]
        self._make_room(above, waiting)
        self._found = sum(shard.bytes for shard in waiting if shard.copy.exists())
        first = int(self._turn * len(waiting))
        shards = waiting = waiting[first:] + waiting[:first]
        state = "whole"
        while waiting:
            left: list[_Shard] = []
            for shard in waiting:
                self._heed()
                try:
                    if not self._settle(shard):
                        left.append(shard)
                except _Damaged as error:
                    log.error("staging: %s", error)
                    state = "damaged"
            if len(left) == len(waiting):  # others on this node are at work on all of them
                self._wait(_LOOK_S)
            waiting = left
        for shard in shards:
            _tidy(shard)
        return state

    def _use(self, folder: Path) -> Path:
        """Keep a split's copies from being removed while this process reads them."""
        while (descriptor := hold(folder)) is None:  # it is being removed
            self._wait(_HEED_S)
        self._users.append(descriptor)
        return folder

    def _make_room(self, above: Path, shards: Sequence[_Shard]) -> None:
        """Remove what nobody uses, if need be, the oldest first. Raises _NoRoom."""
        missing = sum(shard.missing() for shard in shards)
        keep = int(self._options.keep_free_gb * 1e9) if missing else 0

        def lacking() -> int:
            return missing + keep - shutil.disk_usage(above).free

        if not make_room(above, lacking):
            free = shutil.disk_usage(above).free
            raise _NoRoom(
                f"{above}: {free / 1e9:.1f} GB are free, {missing / 1e9:.1f} GB are still to be copied, and"
                f" {self._options.keep_free_gb:g} GB must stay free (data.staging.keep_free_gb). Make room, lower it,"
                " or pack at a shorter side"
            )

    def _settle(self, shard: _Shard) -> bool:
        """Read a shard from its copy, which is made if nobody else is at it; whether that is settled."""
        if not shard.known_whole(verify=self._options.verify):
            with locked(shard.aside) as aside:
                if aside is None:
                    return False
                if not shard.known_whole(verify=self._options.verify):
                    self._make_whole(shard, aside)
                elif is_at(aside, shard.aside):
                    shard.aside.unlink()
        shard.files.use_copy(shard.number, shard.copy)
        self._whole += shard.bytes
        self._under_way = 0
        self._progress()
        return True

    def _make_whole(self, shard: _Shard, aside: int) -> None:
        """Compare a copy that is there, else make one in the open file `aside`, which is renamed."""
        if shard.copy.exists():
            if self._checksum_of(shard.copy, None) == (shard.bytes, shard.checksum):
                shard.note_whole(shard.copy)
                shard.aside.unlink()
                return
            log.warning("staging: %s: damaged since it was copied; it is copied again", shard.copy)
            shard.copy.unlink()
        self._make_room(shard.folder.parent, [shard])
        os.ftruncate(aside, 0)
        source = shard.files.source(shard.number)
        try:
            with naming(shard.aside):
                found = self._checksum_of(source, aside)
        except OSError:
            os.ftruncate(aside, 0)  # a full disk, say: the room is given back
            raise
        if found != (shard.bytes, shard.checksum):
            shard.aside.unlink()
            raise _Damaged(
                f"{source}: damaged: {found[0]} bytes with checksum {found[1]}, but {shard.bytes} with {shard.checksum}"
                " when it was packed. Copy or pack it anew; python -m hrdc_hpc.pack --verify --out"
                f" {shard.files.folder.parent} names the images"
            )
        with naming(shard.aside):
            os.fsync(aside)
        shard.note_whole(shard.aside)  # first: with the rename everybody sees a copy that is known to be whole
        shard.aside.rename(shard.copy)
        fsync_folder(shard.folder)

    def _checksum_of(self, path: Path, target: int | None) -> tuple[int, str]:
        """Read a file to its end, and write it to `target`; return its length and checksum."""
        import xxhash

        digest, piece, done = xxhash.xxh3_64(), memoryview(bytearray(_PIECE)), 0
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(source, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while got := _read(source, piece, path):
                digest.update(piece[:got])
                if target is not None:
                    _write(target, piece[:got])
                    if (done + got) // _SYNC > done // _SYNC:
                        os.fdatasync(target)
                    self._count(done + got, got)
                done += got
                self._heed()
        finally:
            os.close(source)
        return done, digest.hexdigest()

    def _count(self, done: int, more: int) -> None:
        """Note progress within a shard, and hold it back to the rate that is allowed."""
        self._under_way, self._copied = done, self._copied + more
        self._progress()
        if self._rate is not None:
            now = time.monotonic()
            self._due = max(self._due, now - _BURST_S) + more / self._rate
            self._wait(self._due - now)

    def _heed(self) -> None:
        """Raise _Told when it is time to leave; asks for that a few times a second only."""
        now = time.monotonic()
        asks = now - self._asked >= _HEED_S
        if asks:
            self._asked = now
        if self._closed.is_set() or (asks and self._told()):
            raise _Told

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._heed()
        while (left := until - time.monotonic()) > 0:
            self._closed.wait(min(left, _HEED_S))
            self._heed()

    def _progress(self) -> None:
        if time.monotonic() - self._last_said >= _SAY_S:
            self._say("copying")

    def _say(self, state: str) -> None:
        """Log and hand on where it stands."""
        self._last_said = time.monotonic()
        seconds, there = self._last_said - self._began, self._whole + self._under_way
        rate = max(0, there - self._found) / max(seconds, 1e-3)
        log.log(
            self._level, "staging: %s, %.2f of %.2f GB are read from this node, %.0f MB/s",
            state, there / 1e9, self._total / 1e9, rate / 1e6,
        )  # fmt: skip
        told = {"state": state, "bytes": there, "total_bytes": self._total, "copied_bytes": self._copied}
        self._tell({**told, "seconds": seconds, "bytes_per_s": rate})


def _tidy(shard: _Shard) -> None:
    """Remove what a process that was killed left beside a copy."""
    if shard.aside.exists():
        with locked(shard.aside) as aside:
            if aside is not None:
                shard.aside.unlink()


def _read(descriptor: int, piece: memoryview, path: Path) -> int:
    with naming(path):
        return os.readv(descriptor, [piece])


def _write(descriptor: int, content: memoryview) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
