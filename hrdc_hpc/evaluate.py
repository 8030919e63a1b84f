"""Evaluate a checkpoint of a run, or let it predict: `python -m hrdc_hpc.evaluate RUN`.

Prints the accuracy of every head and fusion, and writes both heads' logits, the features and the labels of every
evaluation image below the run's report/ folder, so that fusion weights can be swept without the network.

With --predict IMAGES it prints the classes and probabilities of the given JPEG and PNG files instead, or of those in
the given folders: decoded, cropped and batched as in the evaluation. The data set need not be there.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.engine.trained import Trained, classes_of, network_of, open_checkpoint, run_config, step_argument
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.table import accuracy_table, prediction_table, print_table

if TYPE_CHECKING:
    from hrdc_hpc.data.classes import ClassInfo
    from hrdc_hpc.data.index import BadFile
    from hrdc_hpc.data.loose import LooseImage
    from hrdc_hpc.engine.evaluation import Accuracy
    from hrdc_hpc.engine.predict import Prediction
    from hrdc_hpc.engine.processes import Processes

log = logging.getLogger(__name__)

_MARK = "accuracy.json"
"""A folder with this file holds the outputs of an evaluation."""
_TOP = 5
"""Classes of an image that the table of predictions shows."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(78, f"evaluate: {message}; see --help\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = _Parser(
        prog="python -m hrdc_hpc.evaluate",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="operational settings, e.g. data.loader.threads=4"
    )
    parser.add_argument(
        "--step", type=step_argument, metavar="N|best",
        help="the checkpoint of step N, or of the best evaluation on data.holdout (default: the newest whole one)",
    )  # fmt: skip
    parser.add_argument("--ema", action="store_true", help="evaluate the averaged weights")
    parser.add_argument(
        "--out", type=Path, help="a new folder, or one with earlier outputs (default: RUN/report/step-<n>[-ema])"
    )
    parser.add_argument(
        "--predict",
        nargs="+",
        metavar="IMAGES",
        help="image files, or folders of them (not the folders inside), to predict instead; give key=value before it",
    )
    parser.add_argument("--json", action="store_true", help="predict: one line of JSON per image, all classes")
    parser.add_argument(
        "--top", type=int, metavar="K", help=f"predict: the K likeliest classes of an image (table: {_TOP}; JSON: all)"
    )
    options = parser.parse_intermixed_args(arguments)
    if options.predict and options.out:
        parser.error("--out is for evaluations; predictions go to standard output")
    if not options.predict and (options.json or options.top is not None):
        parser.error("--json and --top go with --predict")
    if options.top is not None and options.top < 1:
        parser.error(f"--top: must be at least 1; got {options.top}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate or predict as the command line says.

    0; 78 for what would come again (a mistake, damaged data); 1 for the world, and if some images were not predicted.
    """
    options = parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        return _predict(options) if options.predict else _evaluate(options)
    except (ValueError, RuntimeError, OSError) as error:
        sys.stderr.write(f"evaluate: {error}\n")
        return 78 if isinstance(error, ValueError) else 1


def _evaluate(options: argparse.Namespace) -> int:
    folder, config = run_config(options.run, options.overrides)
    trained = open_checkpoint(folder, options.step, ema=options.ema)
    out = (options.out or folder.report / f"step-{trained.step}{'-ema' if options.ema else ''}").absolute()
    _refuse_strange_folder(out)
    with _alone(config) as processes:
        accuracy, primary = _run(config, trained, out, processes)
    held_out = " on data.holdout" if config.data.holdout else ""
    print_table(accuracy_table(accuracy, primary, title=_title(trained) + held_out))
    sys.stdout.write(f"outputs: {out}\n")
    return 0


def _title(trained: Trained) -> str:
    return f"{trained.path}{' (averaged weights)' if trained.ema else ''}"


@contextmanager
def _alone(config: RunConfig) -> Iterator[Processes]:
    """Be the only rank of a job."""
    from hrdc_hpc.engine.place import Place
    from hrdc_hpc.engine.processes import open_processes

    # one rank's rendezvous is nobody else's business: it needs no place in the run folder
    with (
        tempfile.TemporaryDirectory() as meeting,
        open_processes(Place(0, 1, 0, 1, Path(meeting) / "meet.json"), config.compute) as processes,
    ):
        yield processes


def _refuse_strange_folder(out: Path) -> None:
    """Outputs may replace outputs, and nothing else that a user has."""
    inside = [entry.name for entry in out.iterdir()] if out.is_dir() else ["a file"]
    if out.exists() and inside and _MARK not in inside:
        raise ValueError(f"--out: {out} is there and holds no outputs of an evaluation; give a new or an empty folder")


def _run(config: RunConfig, trained: Trained, out: Path, processes: Processes) -> tuple[Accuracy, str]:
    from hrdc_hpc.engine.evaluation import Evaluator
    from hrdc_hpc.engine.outputs import OutputFiles
    from hrdc_hpc.engine.parts import eval_loader, open_images
    from hrdc_hpc.engine.precision import pick_precision
    from hrdc_hpc.engine.state import refuse_other_run

    images = open_images(config, processes, local_first=True)
    refuse_other_run(trained.about, config, images.fingerprint, precision=None)
    network, method = network_of(trained, config, images.classes, processes.device)
    precision = pick_precision(config.compute, processes.device)
    loader = eval_loader(config, images.evaluation, processes)
    evaluator = Evaluator(network, method, loader, config, images.classes, precision, processes)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".tmp-{out.name}-", dir=out.parent))
    try:
        files = OutputFiles(aside, len(images.evaluation.labels_N))
        accuracy = evaluator.run(see=files.see)
        files.close()
        (aside / "classes.json").write_text(json.dumps(images.classes.names, indent=1))
        (aside / _MARK).write_text(json.dumps(accuracy, indent=1))
        _put_in_place(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return accuracy, method.primary


def _put_in_place(aside: Path, out: Path) -> None:
    """Move the files to their folder; the mark comes last, so that a folder that has it is whole."""
    out.mkdir(exist_ok=True)
    (out / _MARK).unlink(missing_ok=True)
    for file in sorted(aside.iterdir(), key=lambda file: file.name == _MARK):
        file.replace(out / file.name)


def _predict(options: argparse.Namespace) -> int:
    from hrdc_hpc.data.loose import find

    folder, config = run_config(options.run, options.overrides)
    images, unread = find(options.predict)
    for bad in unread:
        _say_bad(bad)
    unpredicted = len(unread) + (_answer(options, folder, config, images) if images else 0)
    if unpredicted:
        sys.stderr.write(f"evaluate: {unpredicted} of what was given could not be predicted, see above\n")
    return 1 if unpredicted else 0


def _say_bad(bad: BadFile) -> None:
    sys.stderr.write(f"evaluate: not predicted: {bad}\n")


def _answer(options: argparse.Namespace, folder: RunFolder, config: RunConfig, images: list[LooseImage]) -> int:
    """Print the predictions of images; return how many could not be decoded."""
    from hrdc_hpc.data.loose import refuse_other_sizes
    from hrdc_hpc.engine.predict import Prediction, is_resident, predict
    from hrdc_hpc.engine.state import refuse_other_run

    if is_resident(config):
        refuse_other_sizes(images, config.data.image_size)
    trained = open_checkpoint(folder, options.step, ema=options.ema)
    refuse_other_run(trained.about, config, trained.about["fingerprint"], precision=None)
    classes = classes_of(trained.about, config)
    bad, rows = 0, []
    with _alone(config) as processes:
        network, method = network_of(trained, config, classes, processes.device)
        for answer in predict(network, method, config, classes, images, processes):
            if not isinstance(answer, Prediction):
                bad += 1
                _say_bad(answer)
            elif options.json:
                likeliest = _likeliest(answer, method.primary, classes, options.top)
                line = {"image": answer.image, "primary": method.primary, "classes": likeliest}
                sys.stdout.write(json.dumps(line) + "\n")
            else:
                rows.append((answer.image, _likeliest(answer, method.primary, classes, options.top or _TOP)))
    if rows:
        print_table(prediction_table(rows, method.primary, title=_title(trained)))
    return bad


def _likeliest(answer: Prediction, primary: str, classes: ClassInfo, top: int | None) -> list[dict[str, Any]]:
    """Describe the `top` classes (None: all) to which the reported prediction gives most, the likeliest first."""
    order = (-answer.probabilities[primary]).argsort(kind="stable")[:top]
    return [
        {
            "class": classes.names[label],
            "label": label,
            "probabilities": {name: float(values[label]) for name, values in answer.probabilities.items()},
            "logits": {name: float(values[label]) for name, values in answer.logits.items()},
        }
        for label in order.tolist()
    ]


if __name__ == "__main__":
    sys.exit(main())
