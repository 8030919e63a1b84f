"""Pack a data set into a few large shards: `python -m hrdc_hpc.pack --cfg inat.yaml --out PACK`.

PACK then trains as `dataset: {name: packed, root: PACK}`. The shards are uncompressed tars, the index beside them makes
every image readable at once. A start that was ended in any way goes on with the same command: whole shards stay. Images
that cannot be read are listed in PACK/train/unreadable.jsonl and PACK/val/unreadable.jsonl.

--shorter-side 320 makes large images smaller (JPEG, --quality 90), so that training reads and decodes less; what it
costs in pixels: records/pack-formats_*.md. --partition and --tasks pack by a SLURM array. --verify checks a pack
against its checksums.

Exit codes: 0 packed (of an array's task: its part), or whole; 65 packed, but images were unreadable; 1 the world (disk,
a process that died), or a damaged pack; 75 stopped by SIGTERM and 130 by Ctrl-C: the same command goes on; 78 a mistake
on the command line or in the config, or another pack lies there.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from hrdc_hpc.cluster.exit_codes import Exit

_GB = 10**9
_NEEDS = {"numpy": "numpy", "PIL": "pillow", "xxhash": "xxhash"}
"""Modules, and the packages that have them."""
_SLURM_FLAGS = (
    "partition", "profile", "cpus_per_rank", "mem_gb", "time_min", "account", "qos", "constraint", "array_parallelism",
)  # fmt: skip
"""launch's flags that make sense for an array of packers."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(Exit.DO_NOT_REQUEUE, f"pack: {message}; see --help\n")


def _number(text: str, low: int = 1, high: int = 10**9) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}; got {text!r}")
    return int(text)


def _natural(text: str) -> int:
    return _number(text)


def _quality(text: str) -> int:
    return _number(text, 1, 100)


def _gigabytes(text: str) -> int:
    try:
        size = float(text) * _GB
    except ValueError:
        size = 0.0
    if not 1 <= size < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of GB above 0; got {text!r}")
    return round(size)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    from hrdc_hpc.cluster.commandline import CLUSTER_FLAGS  # not for the processes that pack, which import this file

    parser = _Parser(
        prog="python -m hrdc_hpc.pack", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. data.dataset.root=/data/inat")
    parser.add_argument("--cfg", help="config with the data set, or the name of one that comes along, e.g. inat.yaml")
    parser.add_argument("--out", type=Path, required=True, metavar="PACK", help="folder of the packed data set")
    parser.add_argument(
        "--shorter-side", type=_natural, metavar="S", help="encode images with a longer one anew, pixels"
    )
    parser.add_argument("--quality", type=_quality, metavar="Q", help="of JPEGs encoded anew (default: 90)")
    parser.add_argument(
        "--shard-gb", type=_gigabytes, dest="shard_bytes", default=2 * _GB, metavar="GB",
        help="size of a shard, about, in GB of the source's images (default: 2)",
    )  # fmt: skip
    parser.add_argument(
        "--check", choices=["decode", "header"], default="decode",
        help="try each image by decoding it whole, or by its header and end alone, which is faster (default: decode)",
    )  # fmt: skip
    parser.add_argument(
        "--on-bad", choices=["list", "stop"], default="list", help="list unreadable images, or stop (default: list)"
    )
    parser.add_argument("--workers", type=_natural, metavar="N", help="processes (default: the cores one may use)")
    parser.add_argument("--verify", action="store_true", help="check the pack in --out, whole; nothing is written")
    slurm = parser.add_argument_group("by a SLURM array, each task with its own shards")
    slurm.add_argument("--tasks", type=_natural, metavar="N", help="tasks of the array (default: 16)")
    for field in _SLURM_FLAGS:
        flag, kind, text = CLUSTER_FLAGS[field]
        slurm.add_argument(flag, dest=field, type=kind, help=text)
    slurm.add_argument(
        "--sbatch", action="append", metavar="KEY=VALUE", help="any other sbatch option; may be repeated"
    )
    slurm.add_argument("--setup", action="append", metavar="LINE", help="shell line that runs first; may be repeated")
    slurm.add_argument("--dry-run", action="store_true", help="print the batch script; submit nothing")
    slurm.add_argument("--task", metavar="K/N", help=argparse.SUPPRESS)  # what the array's script passes
    parser.set_defaults(
        **dict.fromkeys(set(CLUSTER_FLAGS) - set(_SLURM_FLAGS)), name=None, out_dir=None, cluster="slurm"
    )
    options = parser.parse_intermixed_args(arguments)
    _check(parser, options, [CLUSTER_FLAGS[field][0] for field in _SLURM_FLAGS if getattr(options, field) is not None])
    return options


def _check(parser: _Parser, options: argparse.Namespace, asks: list[str]) -> None:
    """Refuse options that do not go together; `asks`: flags of SLURM that were given."""
    asks += [
        f"--{name.replace('_', '-')}" for name in ("sbatch", "setup", "tasks", "dry_run") if getattr(options, name)
    ]
    if options.verify:
        if options.cfg or options.overrides or asks:
            parser.error("--verify goes with --out and --workers alone: a pack says itself what it should be")
        return
    if not options.cfg:
        parser.error("--cfg is missing: a config's path, or the name of one that comes along, e.g. inat.yaml")
    if options.quality is not None and options.shorter_side is None:
        parser.error("--quality goes with --shorter-side: without it, images are packed as they are")
    if asks and options.partition is None and options.profile is None:
        parser.error(f"{', '.join(asks)}: for a SLURM array, which also needs --partition or --profile")


def missing() -> str | None:
    """Say in one line which packages are not there; None if all are. Torch is not among them."""
    absent = [package for module, package in _NEEDS.items() if find_spec(module) is None]
    if not absent:
        return None
    return f"needs {', '.join(absent)}, which {sys.executable} has not: pip install {' '.join(absent)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack or verify as the command line says; the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(given)
    if lacking := missing():
        sys.stderr.write(f"pack: {lacking}\n")
        return Exit.FAILED
    options.out = options.out.absolute()
    cores = len(os.sched_getaffinity(0))
    from hrdc_hpc.pack.array import submit
    from hrdc_hpc.pack.packing import pack
    from hrdc_hpc.pack.verify import verify

    try:
        if options.verify:
            return verify(options.out, options.workers or cores)
        if options.partition or options.profile:
            return submit(options)
        options.workers = options.workers or cores
        return pack(options)
    except BrokenPipeError:  # '| head' has seen enough; nothing is left to be flushed into the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if options.dry_run:
            return Exit.DONE
        sys.stderr.write("pack: standard output was closed before the end; the same command goes on\n")
        return Exit.FAILED
    except KeyboardInterrupt:  # before or behind the packing itself, which stops at the next image
        sys.stderr.write("pack: interrupted; the same command goes on\n")
        return Exit.LEFT
    except ValueError as error:
        sys.stderr.write(f"pack: {error}\n")
        return Exit.DO_NOT_REQUEUE
    except (RuntimeError, OSError) as error:
        stay = "" if options.verify else " Whole shards stay: the same command goes on."
        sys.stderr.write(f"pack: {error}.{stay}\n")
        return Exit.FAILED


if __name__ == "__main__":
    sys.exit(main())
