"""One writer per run: the lease in the run folder. Torch-free.

The file `lease` holds a random token and names its holder. Whose token stands there may write; every commit asks first
(`check`). The holder touches the file every few seconds. Another process takes the lease over
- at once, if the holder is provably dead (its process is gone from this machine) or is an earlier start of the same
  job (the scheduler requeued it);
- otherwise when the file was not touched for `TTL_S`, by the clock of the file system itself: clocks of nodes differ.

What holds, on one machine and on any file system with an atomic link(2) and rename(2), NFS among them:
- A free lease is taken by linking a finished file to the name: one of many contenders succeeds.
- To take a lease over, a contender first links its own file to a name made from the token that it takes over (a claim).
  Nobody else can claim that token. With the claim in hand it looks again whether the lease is stale, and only then
  renames its file over the lease. If it dies in between, its claim is judged like a lease and claimed in turn.
- The holder releases by the same rule, so nobody is robbed of a lease taken between a look and a rename.
- `check` touches the file, looks for claims, and then reads the lease again; a contender claims and then looks at the
  time. One of the two sees the other, and as claims are removed only after the lease was replaced, a take-over that
  was over before the look shows in the lease: after a successful check no take-over by expiry follows for `TTL_S`,
  longer than a commit takes. A contender looks at claims and lease in the same order right before it renames.
On NFS a client may see a file up to a few seconds late; opening it asks the server, and all reads here open.
What no lease can rule out: a process that is stopped for longer than that between a check and its rename.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.holder import Holder, decode, encode, provably_dead, replaced_by_requeue, this_process

__all__ = ["TTL_S", "Holder", "Lease", "LeaseHeld", "LeaseLost", "peek"]

TTL_S = 60.0
"""A lease that was not touched for so long has expired. A holder should renew every few seconds."""

_POLL_S = 0.5
_HELPERS = ".lease-"


class LeaseHeld(RuntimeError):
    """Another process holds the lease."""


class LeaseLost(RuntimeError):
    """This process held the lease, and does not any more: it must write nothing."""


@dataclass(frozen=True)
class _Seen:
    """A lease file, or a claim, as it was at one look."""

    holder: Holder
    touched_ns: int


class Lease:
    """The lease of a run, held by this process. Made by `acquire`; threads may share it."""

    def __init__(self, folder: RunFolder, holder: Holder) -> None:
        self._path = folder.lease
        self.holder = holder

    @classmethod
    def acquire(
        cls, folder: RunFolder, job: Mapping[str, str | int] | None = None, wait_s: float = 0, ttl_s: float = TTL_S
    ) -> Lease:
        """Take the lease if it is free, or its holder is dead, was requeued as `job`, or let it expire.

        Looks again until `wait_s` seconds have passed; then raises LeaseHeld, which says who holds it. `job`: job_id,
        restart_count and cluster, as far as there is a job.
        """
        me = this_process(job or {})
        deadline = time.monotonic() + wait_s
        while True:
            blocking = _try_to_take(folder.lease, me, ttl_s)
            if blocking is None:
                _remove_old_helpers(folder.lease, 10 * ttl_s)
                return cls(folder, me)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise LeaseHeld(_held(folder, blocking, ttl_s))
            time.sleep(min(_POLL_S, left_s))

    def check(self) -> None:
        """Return if this process may write now. Raises LeaseLost, naming the new holder."""
        self.renew()
        claimed, seen = _look_again(self._path, self.holder)
        if claimed or seen is None or seen.holder.token != self.holder.token:
            raise LeaseLost(self._lost(seen))

    def renew(self) -> None:
        """Touch the lease, so that it does not expire. Raises LeaseLost."""
        for again in (True, False):
            try:
                self._touch()
                return
            except FileNotFoundError:
                raise LeaseLost(self._lost(None)) from None
            except OSError as error:
                if error.errno != errno.ESTALE or not again:  # NFS: replaced between the look-up and the touch
                    raise

    def _touch(self) -> None:
        with self._path.open("rb+") as file:
            holder = decode(file.read())
            if holder.token != self.holder.token:
                raise LeaseLost(self._lost(_Seen(holder, 0)))
            os.utime(file.fileno())

    def release(self) -> None:
        """Free the lease if it is still this process's; otherwise leave it alone."""
        seen = _read(self._path)
        if seen is None or seen.holder.token != self.holder.token:
            return
        # as whoever wants to take it over must do, so that only one of them acts
        claim = _claim(self._path, self.holder.token)
        if not _link(replace(self.holder, token=secrets.token_hex(16)), claim):
            return
        seen = _read(self._path)
        if seen is not None and seen.holder.token == self.holder.token:
            self._path.unlink()
        claim.unlink(missing_ok=True)

    def _lost(self, seen: _Seen | None) -> str:
        if seen is None:
            now = "the file is gone"
        elif seen.holder.token == self.holder.token:
            now = "it is being taken over"
        else:
            now = f"it is held by {seen.holder} now"
        return (
            f"{self._path}: {self.holder} lost the lease of this run, {now}. Nothing more is written."
            " The run goes on there; start it again if it does not."
        )


def peek(folder: RunFolder, ttl_s: float = TTL_S) -> Holder | None:
    """Return who holds the lease; None if it is free, its holder is provably dead, or it has expired."""
    seen = _read(folder.lease)
    if seen is None or provably_dead(seen.holder) or _expired(folder.lease, seen, ttl_s):
        return None
    return seen.holder


def _try_to_take(path: Path, me: Holder, ttl_s: float) -> _Seen | None:
    """One attempt: None if the lease is now `me`'s, else what stands in the way."""
    lease = _read(path)
    if lease is None:
        return None if _link(me, path) else _read(path) or _Seen(Holder(token=""), 0)
    if not _stale(path, lease, me, ttl_s):
        return lease
    last, claims = lease, []
    while (further := _read(claim := _claim(path, last.holder.token))) is not None:
        last = further
        claims.append(claim)
    if (claims and not _stale(path, last, me, ttl_s)) or not _link(me, claim):
        return last
    claims.append(claim)
    # from here on nobody else may act, unless this process is too slow and is taken for dead itself
    now = _read(path)
    if now is None or now.holder.token != lease.holder.token or not _stale(path, now, me, ttl_s):
        claim.unlink(missing_ok=True)
        return now or lease
    aside = path.with_name(f"{_HELPERS}{me.token}")
    _write(aside, me)
    claimed, now = _look_again(path, me)
    if claimed or now is None or now.holder.token != lease.holder.token:
        aside.unlink(missing_ok=True)
        return now or last
    aside.replace(path)
    for claim in claims:
        claim.unlink(missing_ok=True)
    return None


def _look_again(path: Path, me: Holder) -> tuple[bool, _Seen | None]:
    """Whether `me` is being replaced, and then the lease.

    The order matters: whoever replaced the lease before the first look has removed its claim, and shows in the second.
    """
    claimed = _read(_claim(path, me.token)) is not None
    return claimed, _read(path)


def _stale(path: Path, seen: _Seen, me: Holder, ttl_s: float) -> bool:
    """Whether `me` may take over a lease or a claim."""
    known_dead = provably_dead(seen.holder) or replaced_by_requeue(seen.holder, me.job)
    return known_dead or _expired(path, seen, ttl_s)


def _expired(path: Path, seen: _Seen, ttl_s: float) -> bool:
    return _now_ns(path) - seen.touched_ns > ttl_s * 1e9


def _now_ns(path: Path) -> int:
    """Return the time by the file system's clock; by this machine's where we may not write."""
    probe = path.with_name(f"{_HELPERS}probe-{secrets.token_hex(8)}")
    try:
        with probe.open("xb") as file:
            os.utime(file.fileno())  # to now, as the server sees it
            now_ns = os.fstat(file.fileno()).st_mtime_ns
        probe.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise
        return time.time_ns()
    return now_ns


def _read(path: Path) -> _Seen | None:
    for again in (True, False):
        try:
            with path.open("rb") as file:
                return _Seen(decode(file.read()), os.fstat(file.fileno()).st_mtime_ns)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ESTALE or not again:  # NFS: replaced between the look-up and the read
                raise
    raise AssertionError


def _claim(path: Path, token: str) -> Path:
    """Return the file that whoever takes over from `token` must be the first to make."""
    return path.with_name(f"{_HELPERS}after-{hashlib.sha256(token.encode()).hexdigest()[:32]}")


def _link(holder: Holder, target: Path) -> bool:
    """Put a holder's file at `target` if that name is free; whether it was."""
    aside = target.with_name(f"{_HELPERS}{secrets.token_hex(16)}")
    _write(aside, holder)
    try:
        os.link(aside, target)
    except OSError as error:
        if aside.stat().st_nlink == 2:  # NFS: done, but the answer was lost and the question repeated
            return True
        if error.errno == errno.EEXIST:
            return False
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise RuntimeError(
                f"{target.parent}: this file system has no hard links, which the lease of a run needs;"
                " put the run on another one"
            ) from error
        raise
    finally:
        aside.unlink(missing_ok=True)
    return True


def _write(path: Path, holder: Holder) -> None:
    with path.open("xb") as file:
        file.write(encode(holder))
        file.flush()
        os.fsync(file.fileno())


def _remove_old_helpers(path: Path, older_than_s: float) -> None:
    """Clear away what dead contenders left; claims that old bind nobody."""
    now_ns = _now_ns(path)
    for helper in path.parent.glob(f"{_HELPERS}*"):
        try:
            if now_ns - helper.stat().st_mtime_ns > older_than_s * 1e9:
                helper.unlink()
        except FileNotFoundError:
            continue


def _held(folder: RunFolder, seen: _Seen, ttl_s: float) -> str:
    age_s = max(0.0, (_now_ns(folder.lease) - seen.touched_ns) / 1e9)
    return (
        f"{folder.path}: this run is being written by {seen.holder}; last sign of life {age_s:.0f} s ago."
        " Two writers would destroy it, so this one stops. Wait for the other or end it (scancel, kill); if it is dead,"
        f" its lease expires {ttl_s:.0f} s after its last sign of life. If you are sure, remove {folder.lease}."
    )
