"""What the command line of `launch` may say, and its flags as config overrides. Torch-free."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hrdc_hpc.cluster import find_runs
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.cluster.jobs import last_job
from hrdc_hpc.cluster.times import minutes
from hrdc_hpc.config.nodes import parse_nodes


def _time_limit(text: str) -> int:
    try:
        return minutes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _nodes(text: str) -> int | str:
    try:
        return parse_nodes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _links(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_LINKS:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: 1 to {_MOST_LINKS}")
    return int(text)


_MOST_LINKS = 100


CLUSTER_FLAGS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "partition": ("--partition", str, "SLURM partition"),
    "profile": ("--profile", str, "cluster profile: a file, or the name of one that comes along, e.g. apptainer"),
    "nodes": ("--nodes", _nodes, "number of nodes, or a range of which SLURM chooses, e.g. 2-4"),
    "gpus_per_node": ("--gpus-per-node", int, "GPUs per node (0: CPU)"),
    "ranks_per_node": ("--ranks-per-node", int, "processes per node (one per GPU, or one)"),
    "cpus_per_rank": ("--cpus-per-rank", int, "CPU cores per process"),
    "mem_gb": ("--mem-gb", int, "memory per node, GB"),
    "time_min": ("--time", _time_limit, "time limit: minutes, H:MM:SS, D-HH:MM or another of SLURM's forms"),
    "signal_delay_s": ("--signal-delay", int, "seconds before the time limit at which the run is told to save"),
    "account": ("--account", str, "account to charge"),
    "qos": ("--qos", str, "quality of service"),
    "constraint": ("--constraint", str, "features that the nodes must have"),
    "array_parallelism": ("--array-parallelism", int, "elements of an array that run at once"),
    "ask_elements": ("--ask-elements", int, "a sweep of more elements than this wants --yes or an answer"),
    "ask_hours": ("--ask-hours", float, "the same for a sweep of more GPU-hours (CPU-hours without GPUs)"),
}
"""Field of the config's cluster section: its flag, type and help. `sbatch` and `setup` take several values; what
belongs to a cluster rather than to a run has no flag: a profile, or cluster.KEY=VALUE."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(Exit.DO_NOT_REQUEUE, f"launch: {message} (see --help)\n")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the command line's parts; one that is wrong is answered on standard error, and ends with exit code 78."""
    parser = _parser()
    args = parser.parse_intermixed_args(words)
    if args.follow is not None:
        _refuse_others(parser, args)
    elif args.resume is not None:
        _resume(parser, args)
    elif args.resubmit_failed is not None:
        _refuse_beside_resubmit(parser, args)
    elif args.cfg is None:
        parser.error("--cfg is missing: a config's path, or the name of one that comes along, e.g. digits_lt.yaml")
    args.cluster = args.cluster or "slurm"
    if args.cluster == "local" and (args.chain > 1 or args.after):
        parser.error("--chain and --after are for SLURM: a run on this machine depends on no other job")
    if args.resume and (args.sweep or args.resubmit_failed):
        parser.error("--resume is for single runs: leave out --sweep and --resubmit-failed")
    if args.chain > 1 and (args.sweep or args.resubmit_failed):
        parser.error("--chain is for single runs; what a sweep has left is submitted by --resubmit-failed")
    return args


def _resume(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill in what a launch of the run folder's own config would be given; it goes where it was launched last."""
    if args.cfg or args.name or args.out_dir:
        parser.error("--resume names the run: leave out --cfg, --name and --out-dir")
    run = Path(args.resume).absolute()
    if not (run / "config.yaml").is_file():
        parser.error(f"--resume: {run} is not a run folder (no config.yaml){find_runs.hint(args.resume)}")
    job = last_job(run)
    args.cfg, args.name, args.out_dir = str(run / "config.yaml"), run.name, str(run.parent)
    args.cluster = args.cluster or (job.kind if job else None)


def _refuse_beside_resubmit(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.cfg or args.sweep or args.name or args.out_dir:
        parser.error(
            "--resubmit-failed takes elements and configs from the folder: leave out --cfg, --sweep, --name and"
            " --out-dir"
        )


def _refuse_others(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if any(value and value != parser.get_default(name) for name, value in vars(args).items() if name != "follow"):
        parser.error("--follow goes alone: it follows the run as it was launched; leave the other arguments out")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m hrdc_hpc.launch", description="Train a config on a cluster, or resume it.", allow_abbrev=False
    )
    parser.add_argument("--cfg", help="config file, or the name of one that comes along, e.g. digits_lt.yaml")
    parser.add_argument(
        "--resume", metavar="RUN", help="go on with a run folder, by its own config, as launched before"
    )
    parser.add_argument("--cluster", choices=["slurm", "local"], help="local: train on this machine (default: slurm)")
    add_shared(parser)
    parser.add_argument(
        "--sweep", nargs="+", metavar="KEY=VALUE,VALUE",
        help="all combinations as one array, a run folder each; or a YAML file of keys with lists; overrides go in"
        " front, or behind another flag",
    )  # fmt: skip
    parser.add_argument(
        "--resubmit-failed", metavar="SWEEP", help="submit what a sweep has left that is not finished or under way"
    )
    parser.add_argument("--yes", action="store_true", help="submit a large sweep without asking")
    parser.add_argument(
        "--chain", type=_links, default=1, metavar="N",
        help="submit N jobs, each after the one before, for sites where jobs are not requeued",
    )  # fmt: skip
    parser.add_argument(
        "--after", metavar="RUN|SWEEP|JOB",
        help="start once that has ended well; of a sweep after a sweep of as many elements, each once its own has",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the job and the resolved config; write nothing")
    parser.add_argument("--prepare", action="store_true", help="make the run folder, submit nothing")
    parser.add_argument("--wait", action="store_true", help="follow the run to its end and print the result")
    parser.add_argument(
        "--follow", metavar="RUN", help="follow a run or sweep that was launched before; nothing else is done"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config fields, e.g. optim.lr=0.2")
    return parser


def add_shared(parser: argparse.ArgumentParser, but: Container[str] = ()) -> None:
    """Add the flags of every command that submits, all but those of the fields `but`; `overrides` reads them."""
    for field, (flag, kind, text) in CLUSTER_FLAGS.items():
        if field not in but:
            parser.add_argument(flag, dest=field, type=kind, help=text)
    sbatch_help = "any other sbatch option by its long name; KEY=false leaves out one of ours; may be repeated"
    parser.add_argument("--sbatch", action="append", metavar="KEY=VALUE", help=sbatch_help)
    parser.add_argument(
        "--setup", action="append", metavar="LINE", help="shell line that runs on the node first; may be repeated"
    )
    parser.add_argument("--name", help="the run's folder below --out-dir")
    parser.add_argument("--out-dir", help="where run folders are made")


def overrides(args: argparse.Namespace, but: Container[str] = ()) -> list[str]:
    """All flags, but for those of the fields `but` of the section cluster, as config overrides.

    Those without a key of their own come last, as on every command line.
    """
    found = {f"cluster.{field}": getattr(args, field) for field in CLUSTER_FLAGS if field not in but}
    found |= {"name": args.name, "out_dir": args.out_dir, "cluster.setup": args.setup}
    for option in args.sbatch or ():
        key, separator, value = option.partition("=")
        found[f"cluster.sbatch.{key.lstrip('-')}"] = _WORDS.get(value.lower(), value) if separator else True
    if args.cluster == "local" and (args.partition or args.sbatch):
        raise ValueError("--cluster local does not go with --partition or --sbatch, which are for SLURM; leave one out")
    # JSON is YAML: a string stays a string, however much it looks like a number
    flags = [f"{key}={json.dumps(value)}" for key, value in found.items() if value is not None]
    return [*flags, *args.overrides]


_WORDS = {"true": True, "false": False}
"""As in YAML; every other value of --sbatch is text."""
