"""The file system of the run folders: what kind, how full, how fast, and whether a lease works on it. Torch-free."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hrdc_hpc.cluster.checkup.finding import Finding, Role, ok, problem, warning
from hrdc_hpc.record.files import TEMPORARY, fsync_folder
from hrdc_hpc.record.lease import TTL_S

_SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cephfs", "panfs", "wekafs", "glusterfs", "cifs", "9p",
           "orangefs", "pvfs2", "fuse.ceph", "fuse.glusterfs", "virtiofs", "smb3")  # fmt: skip
_MEMORY = ("tmpfs", "ramfs")
_FREE_GB, _FREE_INODES = 20.0, 10_000
_SLOW_S = 1.0
_BYTES = 1 << 20


def check(folder: Path, role: Role) -> Iterator[Finding]:
    """Yield findings on the file system under `folder`, which need not be there yet; what is tried is removed."""
    there = folder.absolute()
    while not there.is_dir() and there != there.parent:
        there = there.parent
    kind, mount = file_system(there)
    yield _kind(folder, kind, mount, role)
    yield _space(folder, there)
    yield from _try_out(folder, there)


def file_system(folder: Path) -> tuple[str, str]:
    """Return kind and mount point of the file system of a folder, e.g. ('nfs4', '/home')."""
    best = ("unknown", "/")
    real = str(folder.resolve())
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():  # proc(5)
        before, _, after = line.partition(" - ")
        mount = before.split()[4].encode().decode("unicode_escape")
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if after and inside and len(mount) >= len(best[1]):
            best = (after.split()[0], mount)
    return best


def _kind(folder: Path, kind: str, mount: str, role: Role) -> Finding:
    found = f"{kind}, mounted at {mount}"
    if kind in _MEMORY:
        means = "it lies in memory: gone after a reboot" + ("" if role == "machine" else ", and no other node sees it")
        return warning("run folders", f"{folder}: {found}", means, "choose an --out-dir on a shared file system")
    if role != "machine" and not kind.startswith(_SHARED):
        return warning(
            "run folders", f"{folder}: {found}", "looks like a disk of this machine alone; all nodes must see it",
            "choose an --out-dir on a shared file system, if other nodes do not see this one",
        )  # fmt: skip
    return ok("run folders", f"{folder}: {found}")


def _space(folder: Path, there: Path) -> Finding:
    size = os.statvfs(there)
    free, inodes = size.f_frsize * size.f_bavail / 1e9, size.f_favail
    found = f"{free:.1f} GB and {inodes if size.f_files else 'unlimited'} inodes free"
    low = [f"less than {_FREE_GB:.0f} GB"] if free < _FREE_GB else []
    low += [f"less than {_FREE_INODES} inodes"] if size.f_files and inodes < _FREE_INODES else []
    if low:
        means = f"{' and '.join(low)}: a run stops when a checkpoint does not fit"
        return warning("free space", found, means, f"make room below {folder}, or choose another --out-dir")
    return ok("free space", f"{found} (quotas are not looked at)")


def _try_out(folder: Path, there: Path) -> Iterator[Finding]:
    """Write, fsync, rename, link: what checkpoints and the lease need; then compare the clocks."""
    aside = there / f"{TEMPORARY}doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        aside.mkdir()
    except OSError as error:
        mend = "choose an --out-dir in which you may write"
        yield problem("write test", f"{there}: {error.strerror}", "no run folder can be made there", mend)
        return
    try:
        start = time.perf_counter()
        with (aside / "a").open("xb") as file:
            file.write(b"\0" * _BYTES)
            file.flush()
            os.fsync(file.fileno())
        written = time.perf_counter()
        (aside / "a").rename(aside / "b")
        fsync_folder(aside)
        renamed = time.perf_counter()
        yield _speed(written - start, renamed - written)
        yield _links(aside, folder)
        yield _clock(aside)
    except OSError as error:
        yield problem("write test", f"{there}: {error}", "checkpoints cannot be written", "choose another --out-dir")
    finally:
        for path in aside.glob("*"):
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            aside.rmdir()


def _speed(write_s: float, rename_s: float) -> Finding:
    found = f"write and fsync of 1 MiB {1000 * write_s:.0f} ms, rename and fsync of the folder {1000 * rename_s:.0f} ms"
    if write_s + rename_s > _SLOW_S:
        means = "every checkpoint and every attempt waits for it several times"
        return warning("write test", found, means, "save less often (checkpoint.every_steps), or use another --out-dir")
    return ok("write test", found)


def _links(aside: Path, folder: Path) -> Finding:
    """Of several that link a file to one name, one may succeed: the lease rests on that."""
    try:
        os.link(aside / "b", aside / "c")
        try:
            os.link(aside / "b", aside / "c")
            exclusive = False
        except FileExistsError:
            exclusive = True
    except OSError as error:
        return problem(
            "lease", f"no hard links: {error.strerror}", "two jobs of one run could not be kept apart, so none starts",
            f"choose an --out-dir on another file system than {folder}'s",
        )  # fmt: skip
    if not exclusive:
        return problem(
            "lease", "a second link to a name that is taken succeeds", "two jobs of one run would both write",
            "choose an --out-dir on another file system",
        )  # fmt: skip
    return ok("lease", "hard links are exclusive")


def _clock(aside: Path) -> Finding:
    """Compare this machine's clock with the file server's: the file's time is set by the server."""
    path = aside / "clock"
    before = time.time()
    with path.open("xb") as file:
        os.utime(file.fileno())
        server = os.fstat(file.fileno()).st_mtime
    after = time.time()
    skew = server - before if server < before else max(0.0, server - after)
    found = (
        f"{abs(skew):.2f} s {'ahead of' if skew > 0 else 'behind'} this machine's" if abs(skew) > 0.05 else "the same"
    )
    if abs(skew) > TTL_S / 2:
        means = "the lease goes by the server's clock and is safe; ages and times to finish are shown wrong"
        return warning("file server's clock", found, means, "synchronise the clocks (chrony, ntp)")
    return ok("file server's clock", found)
