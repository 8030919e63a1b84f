"""Packing on this machine, from the command line's options to the last word. Torch-free."""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hrdc_hpc.cluster.commandline import overrides
from hrdc_hpc.cluster.console import say
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.config.load import load
from hrdc_hpc.config.paths import absolute
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.index import name_some
from hrdc_hpc.data.manifest import MANIFEST, SPLITS, Manifest
from hrdc_hpc.data.packed import INDEX, read_unreadable
from hrdc_hpc.data.preflight import preflight
from hrdc_hpc.pack.finish import finish, missing
from hrdc_hpc.pack.plan import Options, Plan, differences, make_plan, parts_folder
from hrdc_hpc.pack.progress import display
from hrdc_hpc.pack.shard import MEND, Stopped, Unreadable, has_length, read_part
from hrdc_hpc.pack.work import pack_shards, stop_flag
from hrdc_hpc.record.files import TEMPORARY, temporary_beside, write_json_durably

UNREADABLE_LISTED = 65
"""Exit code of a pack that is finished, but without some of the source's images: EX_DATAERR of sysexits.h."""
_OURS = {"parts", "code", "logs", "config.yaml"}
"""What may be there before the plan is."""
PLAN = "plan.json"
"""What is being packed; locked while somebody packs."""
_PLAIN = re.compile(r"[\w./+=~@%-]+", re.ASCII)
"""A path that YAML takes as it is."""
_ROOM = 1.02
"""Bytes on disk over bytes in files, about."""


def pack(args: argparse.Namespace) -> int:
    """Pack what is not there yet; the exit code."""
    part, parts = _task(args.task)
    plan = open_plan(args, config_of(args), trust_cache=args.task is not None)
    if (done := begin(args.out, plan)) is not None:
        if args.on_bad == "stop":
            _refuse_listed(args.out, done)
        say(f"{args.out} is finished: nothing to do. {told(done, args.out)}")
        return exit_code(done)
    with _claimed(args.out, plan, alone=args.task is None):
        return _pack(args, plan, part, parts)


def _pack(args: argparse.Namespace, plan: Plan, part: int, parts: int) -> int:
    if args.on_bad == "stop":
        _refuse_unreadable(plan)
    refuse_without_room(args.out, plan)
    with stop_flag() as stop:
        shown = display(plan.images(part, parts))
        try:
            whole = pack_shards(
                args.out,
                plan,
                plan.tasks(part, parts),
                workers=args.workers,
                on_bad=args.on_bad,
                shown=shown,
                stop=stop,
            )
        except Stopped:
            name = stop.signal.name if stop.signal else "a signal"
            say(f"stopped by {name}; whole shards stay in {args.out}: the same command goes on")
            return Exit.LEFT if stop.signal == signal.SIGINT else Exit.REQUEUE
        finally:
            shown.close()
    if whole:
        say(f"{_shards(whole)} whole already")
    if left := missing(args.out, plan):
        say(
            f"{args.out}: {left} of {plan.shards} shards are still to come, from other tasks; the last writes the index"
        )
        return Exit.DONE
    manifest = finish(args.out, plan)
    say(told(manifest, args.out))
    return exit_code(manifest)


def open_plan(args: argparse.Namespace, config: RunConfig, *, trust_cache: bool = False) -> Plan:
    """Return what is to be written. ValueError for a data set that cannot be opened."""
    preflight(config.data)
    quality = {} if args.quality is None else {"quality": args.quality}
    options = Options(shorter_side=args.shorter_side, shard_bytes=args.shard_bytes, check=args.check, **quality)
    return make_plan(config.data, options, trust_cache=trust_cache)


def config_of(args: argparse.Namespace) -> RunConfig:
    """Return the config that the command line names, with its overrides. ValueError with all that is wrong."""
    return absolute(load(args.cfg, overrides(args)))


def _task(word: str | None) -> tuple[int, int]:
    """'3/16' as (3, 16): the fourth of sixteen tasks; without one, the only one."""
    if word is None:
        return 0, 1
    part, _, parts = word.partition("/")
    return int(part), int(parts)


def begin(out: Path, plan: Plan) -> Manifest | None:
    """Make the folder, or go on with what is there; return the manifest if it is finished.

    ValueError if there is a pack of another source, or one made with other options, or something else; RuntimeError if
    it is finished, but shards have gone since.
    """
    wanted, noted = plan.as_json(), parts_folder(out) / PLAN
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is no folder; give a new or an empty one as --out")
    if (out / MANIFEST).exists():
        done = Manifest.read(out)
        there: dict[str, Any] = {
            "name": done.name,
            "options": dict(done.options),
            "encoder": {key: done.versions.get(key) for key in wanted["encoder"]},
            "sources": {
                split: {"images": wanted["sources"].get(split, {}).get("images"), "fingerprint": facts.source}
                for split, facts in done.splits.items()
            },
        }
        _refuse_other(out, there, wanted, "holds")
        _refuse_damaged(out, done)
        return done
    if noted.exists():
        _refuse_other_plan(out, wanted)
        return None
    if out.exists() and {entry.name for entry in out.iterdir()} - _OURS:
        raise ValueError(f"{out}: holds something else than a packed data set; give a new or an empty folder as --out")
    noted.parent.mkdir(parents=True, exist_ok=True)
    _note(out, wanted)
    return None


def _note(out: Path, wanted: dict[str, Any]) -> None:
    """Write the plan; ValueError if somebody else has begun another pack meanwhile."""
    noted = parts_folder(out) / PLAN
    aside = temporary_beside(noted)
    try:
        write_json_durably(aside, wanted)
        # a link, unlike a renamed file, never takes the place of a plan that another packer has written and locked
        os.link(aside, noted)
    except (FileExistsError, FileNotFoundError):  # another was quicker, and may have removed ours as a leftover
        _refuse_other_plan(out, wanted)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EMLINK):  # no links there
            raise
        write_json_durably(noted, wanted)
    finally:
        aside.unlink(missing_ok=True)


def _refuse_other_plan(out: Path, wanted: dict[str, Any]) -> None:
    noted = parts_folder(out) / PLAN
    try:
        there = json.loads(noted.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{noted}: damaged: {error}. Remove {out} and pack the data set anew.") from error
    _refuse_other(out, there, wanted, "was begun as")


def _refuse_damaged(out: Path, done: Manifest) -> None:
    """RuntimeError if a file of a finished pack is missing, or not as long as when it was packed."""
    wanted = {
        out / split / name: length
        for split, facts in done.splits.items()
        for name, length in [(INDEX, facts.index_bytes), *((shard.file, shard.bytes) for shard in facts.shards)]
    }
    wrong = [str(path) for path, length in wanted.items() if not path.is_file() or path.stat().st_size != length]
    if wrong:
        raise RuntimeError(
            f"{out}: was finished, but is damaged since: missing, or of another length: {name_some(wrong)}. Remove"
            f" {out / MANIFEST} to have them written anew"
        )


@contextmanager
def _claimed(out: Path, plan: Plan, *, alone: bool) -> Iterator[None]:
    """Keep others out for the block: everybody, or with `alone` off all but the array's other tasks.

    ValueError if somebody is there. A file system without locks lets everybody in: who is then in the way of another
    is told so when it renames (shard.replacing).
    """
    with (parts_folder(out) / PLAN).open("r+b") as file:  # NFS locks alone only what is open for writing
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{out}: another packer is at work there; wait until it has ended") from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
        _refuse_other_plan(out, plan.as_json())  # two that began at once, where there are no links
        if alone:
            _remove_leftovers(out)
        yield


def _remove_leftovers(out: Path) -> None:
    """Remove what killed packers left."""
    for folder in (out, parts_folder(out), *(out / split for split in SPLITS)):
        for left in folder.glob(f"{TEMPORARY}*"):
            left.unlink(missing_ok=True)


def _refuse_other(out: Path, there: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
    if found := differences(there, wanted):
        raise ValueError(
            f"{out}: {what} another pack: {'; '.join(found)}. Give the options that it was made with, or another --out;"
            " or remove it."
        )


def _refuse_unreadable(plan: Plan) -> None:
    """Unreadable if the data set itself has refused images."""
    bad = [file for index in plan.sources.values() for file in index.skipped]
    if bad:
        raise Unreadable(f"{len(bad)} images cannot be packed: {name_some(map(str, bad))}. {MEND}")


def _refuse_listed(out: Path, done: Manifest) -> None:
    """Unreadable if a finished pack lacks images."""
    bad = [file for split in done.splits for file in read_unreadable(out / split)]
    if bad:
        raise Unreadable(f"{out}: is finished without {len(bad)} unreadable images: {name_some(map(str, bad))}. {MEND}")


def refuse_without_room(out: Path, plan: Plan) -> None:
    """RuntimeError where the file system has less room than what is still to be written may take."""
    there = 0
    for split, counts in plan.counts.items():
        for number in range(len(counts)):
            part = read_part(out, split, number)
            there += part.bytes if part is not None and has_length(out, split, number, part) else 0
    needed, free = round(_ROOM * (plan.bytes_at_most() - there)), shutil.disk_usage(out).free
    if needed > free:
        raise RuntimeError(
            f"{out}: needs up to {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free there: make room, or choose"
            " another --out"
        )


def told(manifest: Manifest, out: Path) -> str:
    """Say what a pack holds, and how to train on it."""
    lines = []
    for split, facts in manifest.splits.items():
        lines.append(
            f"{split}: {facts.images:,} images, {facts.bytes / 1e9:.3f} GB, in {_shards(len(facts.shards))}"
            + (
                f"; {facts.unreadable:,} unreadable, listed in {out / split / 'unreadable.jsonl'}"
                if facts.unreadable
                else ""
            )
        )
    root = str(out)
    if not _PLAIN.fullmatch(root):
        root = json.dumps(root)  # in YAML's quotes, which are those of JSON
    return "\n".join([*lines, f"train on it with: {shlex.quote(f'data.dataset={{name: packed, root: {root}}}')}"])


def _shards(number: int) -> str:
    return f"{number} shard{'s'[: number != 1]}"


def exit_code(manifest: Manifest) -> int:
    """Return the exit code for a finished pack: whether it has all images."""
    return UNREADABLE_LISTED if any(facts.unreadable for facts in manifest.splits.values()) else Exit.DONE
