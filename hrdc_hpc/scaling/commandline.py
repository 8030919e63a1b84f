"""What the command line of `scaling` may say. Torch-free.

The flags that launch has too are launch's own (cluster/commandline.py); those of sizes take several numbers here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from hrdc_hpc.cluster import commandline
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.scaling import plan
from hrdc_hpc.scaling.plan import Shape
from hrdc_hpc.scaling.view import EFFICIENCY

T = TypeVar("T")

OF_SIZES = ("nodes", "ranks_per_node")
"""Fields of the config's section cluster whose flags take several numbers."""
REPEATS = 3
_EPILOG = """\
The same command again goes on: finished rows are kept, queued and running ones are left alone, the rest is submitted
again; with other sizes or more repeats the study grows. `scaling report STUDY` writes the report of what is there;
`scaling predict --cfg ... --profile ... --nodes 1-512` predicts on paper. The study's folder is a sweep's:
status, status cancel and launch --follow take it.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(Exit.DO_NOT_REQUEUE, f"scaling: {message} (see --help)\n")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the command line's parts, `act` saying what is to be done: measure, report, predict or accuracy.

    One that is wrong is answered on standard error, and ends with exit code 78.
    """
    if words and words[0] == "report":
        args = _report_parser().parse_intermixed_args(words[1:])
        return argparse.Namespace(act="report", **vars(args))
    if words and words[0] == "predict":
        words = [*words[1:], "--predict"]
    parser = _parser()
    args = parser.parse_intermixed_args(words)
    if args.cfg is None:
        parser.error("--cfg is missing: a config's path, or the name of one that comes along, e.g. digits_lt.yaml")
    if args.predict and args.to_accuracy:
        parser.error("--predict goes without --to-accuracy: accuracy is not predicted")
    if (args.classes or args.report) and not args.predict:
        parser.error("--classes and --report go with --predict; the report of a study is in its folder")
    if args.batches and not args.to_accuracy:
        parser.error("--batches goes with --to-accuracy METRIC=VALUE")
    if args.to_accuracy:
        _refuse_of_sizes(parser, args)
    args.act = "accuracy" if args.to_accuracy else "predict" if args.predict else "measure"
    return args


def _refuse_of_sizes(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Training takes launch's own number of nodes and ranks; refuse what is for measuring."""
    for flag, value in (
        ("--gpus", args.gpus), ("--mode", args.mode), ("--images", args.images), ("--in-turn", args.in_turn),
        ("--batch-per-rank", args.batch_per_rank), ("--global-batch", args.global_batch),
    ):  # fmt: skip
        if value:
            parser.error(f"--to-accuracy trains with several --batches: {flag} does not go with it")
    for field in OF_SIZES:
        text = getattr(args, field)
        if text is not None and not text.isdecimal():
            flag = f"--{field.replace('_', '-')}"
            parser.error(f"--to-accuracy trains on one size: {flag} takes one number; got {text!r}")
        setattr(args, field, int(text) if text else None)


def shape(args: argparse.Namespace) -> Shape:
    """Return what the command line says of sizes and batches. Raises ValueError with all that is wrong."""
    wrong: list[str] = []

    def read(flag: str, text: str | None, reader: Callable[[str], list[T]]) -> list[T] | None:
        try:
            return None if text is None else reader(text)
        except ValueError as error:
            wrong.append(f"{flag}: {error}")
            return None

    found = Shape(
        nodes=read("--nodes", args.nodes, plan.numbers), gpus=read("--gpus", args.gpus, plan.numbers),
        ranks=read("--ranks-per-node", args.ranks_per_node, plan.numbers),
        modes=read("--mode", args.mode, plan.modes) or ("weak",), repeats=args.repeats or REPEATS,
        batch_per_rank=args.batch_per_rank, global_batch=args.global_batch, images=args.images,
    )  # fmt: skip
    if wrong:
        raise ValueError("\n".join(wrong))
    return found


def measured(args: argparse.Namespace) -> list[str]:
    """Overrides of the measured runs: our settings, then those of the command line."""
    given = commandline.overrides(args, OF_SIZES)
    return [*(f"{key}={value}" for key, value in plan.SETTINGS.items()), *given]


def trained(args: argparse.Namespace) -> list[str]:
    """Overrides of the config as it would be trained: what the command line says of the measured runs alone is out."""
    of_runs = (*OF_SIZES, "gpus_per_node", "time_min", "array_parallelism")
    given = commandline.overrides(args, of_runs)
    return [word for word in given if not word.partition("=")[0].strip().startswith("measure")]


def _numbers(text: str) -> list[int]:
    try:
        return plan.numbers(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0; got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share above 0 and up to 1, such as 0.8; got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m hrdc_hpc.scaling", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure the training of a config on several numbers of nodes or GPUs, and say what more of them"
        " buy.",
        epilog=_EPILOG,
    )  # fmt: skip
    parser.add_argument("--cfg", help="config file, or the name of one that comes along, e.g. inat.yaml")
    parser.add_argument("--nodes", metavar="N,N", help="numbers of nodes: 1,2,4,8 or 1-4")
    parser.add_argument("--gpus", metavar="N,N", help="GPUs of a node, a rank on each (of every --nodes)")
    parser.add_argument("--ranks-per-node", metavar="N,N", help="processes per node; GPUs as configured")
    parser.add_argument(
        "--mode", metavar="weak,strong",
        help="weak (default): the images per rank stay; strong: the global batch stays; or both",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=_number, metavar="N", help=f"of each size ({REPEATS}); of --to-accuracy, seeds (1)"
    )
    parser.add_argument("--batch-per-rank", type=_number, metavar="N", help="weak: images (the config's per rank)")
    parser.add_argument("--global-batch", type=_number, metavar="N", help="strong: images (optim.global_batch)")
    parser.add_argument("--images", choices=["real", "resident"], help="resident: made-up images on the device")
    parser.add_argument(
        "--efficiency", type=_share, default=EFFICIENCY, metavar="SHARE", help="that is wanted (%(default)s)"
    )
    parser.add_argument("--predict", action="store_true", help="on paper, from a cluster profile; runs nothing")
    parser.add_argument("--classes", type=_number, metavar="N", help="for --predict, where the data set is not there")
    parser.add_argument("--report", metavar="DIR", help="write the report of --predict into this folder")
    parser.add_argument(
        "--to-accuracy", metavar="METRIC[=VALUE]", help="train with several batches, e.g. overall=60 (%%)"
    )
    parser.add_argument("--batches", metavar="N,N", help="global batches of --to-accuracy")
    parser.add_argument(
        "--in-turn", action="store_true", help="a size waits for the one before, so that none disturbs another"
    )
    parser.add_argument("--cluster", choices=["slurm", "local"], default="slurm", help="local: on this machine")
    commandline.add_shared(parser, OF_SIZES)
    parser.add_argument("--yes", action="store_true", help="submit a large study without asking")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what sbatch gets; write nothing")
    parser.add_argument("--wait", action="store_true", help="follow the study to its end, then report")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config fields, e.g. measure.steps=50")
    return parser


def _report_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m hrdc_hpc.scaling report", allow_abbrev=False,
        description="Write the report of what a study has found so far, and print its tables.",
    )  # fmt: skip
    parser.add_argument("study", metavar="STUDY", help="its folder")
    parser.add_argument("--efficiency", type=_share, metavar="SHARE", help="that is wanted (as the study was given)")
    parser.add_argument("--predict", type=_numbers, metavar="N,N", help="numbers of nodes to predict, e.g. 16,32,64")
    return parser
