"""What `make bench-cpu` and `make bench-gpu` run, one program after another, within nine minutes.

Each program runs in a process of its own, so that none finds another's memory. A program that would run over the time
is ended and said so; what this machine lacks is said in one line and left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hrdc_hpc import bench

LIMIT_S = 530
"""Of all programs together; make and Python take the rest of nine minutes."""
ROOT = Path(__file__).resolve().parents[1]


def programs(machine: str, root: str) -> list[list[str]]:
    """Return modules with their arguments. Turns are as long as the time allows: a compilation costs most of it."""
    end_to_end = ["benchmarks.end_to_end", "--root", root]
    # beside, not over, the record of the same day of a longer run by itself
    loader = ["benchmarks.loader", "--images", "64", "--seconds", "1", "--out", "records/quick"]
    if machine == "cpu":
        return [
            ["benchmarks.step", "--model", "resnet32", "--seconds", "2", "compute.device=cpu"],
            ["benchmarks.step", "--model", "resnet50", "--rungs", "fp32 NCHW", "--seconds", "2.5",
             "compute.device=cpu"],
            [*end_to_end, "--seconds", "3", "compute.device=cpu"],
            loader,
        ]  # fmt: skip
    return [
        ["benchmarks.ladder", "resnet50-8142", "--cfg", "inat.yaml", "--classes", "8142", "--batch", "256",
         "--seconds", "2", "compute.device=cuda"],
        ["benchmarks.step", "--model", "resnet50", "--rungs", "compile", "--seconds", "2", "compute.device=cuda"],
        ["benchmarks.step", "--model", "resnet32", "--seconds", "1.5", "compute.device=cuda"],
        [*end_to_end, "--seconds", "4", "compute.device=cuda"],
        loader,
        ["benchmarks.agreement", "--root", root, "compute.device=cuda"],
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the programs; 0 if all of them ended well, else 1."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    if lacking := bench.missing() or _no_gpu(options.machine):
        sys.stderr.write(f"bench-{options.machine}: {lacking}\n")
        return 1
    _tell_what_is_absent()
    planned = [one for one in programs(options.machine, options.root) if one[0] != "benchmarks.loader" or _has_dali()]
    if options.only is not None:
        planned = [program for program in planned if options.only in " ".join(program)]
    began = time.monotonic()
    failed = [program for program in planned if not _run(program, options.limit - (time.monotonic() - began))]
    sys.stdout.write(f"bench-{options.machine}: {time.monotonic() - began:.0f} s\n")
    for program in failed:
        sys.stderr.write(f"bench-{options.machine}: not measured: python -m {' '.join(program)}\n")
    return 1 if failed else 0


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__, allow_abbrev=False)
    parser.add_argument("machine", choices=("cpu", "gpu"))
    parser.add_argument("--root", default="data/cifar10", help="folder with the CIFAR-10 files (default: data/cifar10)")
    parser.add_argument("--only", help="programs whose command line holds these words, e.g. resnet32")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for all of them")
    return parser.parse_args(words)


def _no_gpu(machine: str) -> str | None:
    if machine == "cpu":
        return None
    import torch

    if torch.cuda.is_available():
        return None
    built = "" if torch.version.cuda else ", which was built without CUDA"
    return f"needs an NVIDIA GPU; torch {torch.__version__}{built} sees none. On a CPU: make bench-cpu"


def _has_dali() -> bool:
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def _tell_what_is_absent() -> None:
    """Say what will be missing in the tables, and why."""
    if find_spec("timm") is None:
        sys.stdout.write("timm: not measured: timm is not installed\n")
    if not _has_dali():
        sys.stdout.write("loader of encoded images: not measured: DALI is not installed\n")


def _run(program: Sequence[str], seconds: float) -> bool:
    """Run one program for so many seconds at most; return whether it ended well."""
    if seconds < 1:
        return False
    sys.stdout.write(f"\n== python -m {' '.join(program)}\n")
    sys.stdout.flush()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run([sys.executable, "-m", *program], cwd=ROOT, env=environment, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"ended after {seconds:.0f} s: the time of the whole is over\n")
        return False
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
