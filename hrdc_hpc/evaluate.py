"""Evaluate a checkpoint of a run: `python -m hrdc_hpc.evaluate RUN`.

Prints the accuracy of every head and fusion, and writes both heads' logits, the features and the labels of every
evaluation image below the run's report/ folder, so that fusion weights can be swept without the network.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hrdc_hpc.config.load import loads
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.table import accuracy_table, print_table

if TYPE_CHECKING:
    from hrdc_hpc.engine.evaluation import Accuracy

log = logging.getLogger(__name__)

_MARK = "accuracy.json"
"""A folder with this file holds the outputs of an evaluation."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(78, f"evaluate: {message}; see --help\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = _Parser(prog="python -m hrdc_hpc.evaluate", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="operational settings, e.g. data.loader.threads=4"
    )
    parser.add_argument("--step", type=int, help="the checkpoint of this step (default: the newest whole one)")
    parser.add_argument("--ema", action="store_true", help="evaluate the averaged weights")
    parser.add_argument(
        "--out", type=Path, help="a new folder, or one with earlier outputs (default: RUN/report/step-<n>[-ema])"
    )
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says; 0, 78 for what would come again (a mistake, damaged data), 1 for the world."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        _evaluate(options)
    except (ValueError, RuntimeError, OSError) as error:
        sys.stderr.write(f"evaluate: {error}\n")
        return 78 if isinstance(error, ValueError) else 1
    return 0


def _evaluate(options: argparse.Namespace) -> None:
    folder = RunFolder(options.run)
    if not folder.config.is_file():
        raise ValueError(f"{options.run}: not a run folder, it has no config.yaml; give the path that launch printed")
    config = loads(folder.config.read_text(), str(folder.config), options.overrides)
    import hrdc_hpc.engine.checkpoint as checkpoint  # torch is imported only once the arguments are found to be right

    path, about = _choose(folder, options.step, checkpoint)
    name = f"step-{checkpoint.step_of(path)}{'-ema' if options.ema else ''}"
    out = (options.out or folder.report / name).absolute()
    _refuse_strange_folder(out)
    state = checkpoint.load(path)
    if options.ema and "ema" not in state:
        raise ValueError(f"{path}: holds no averaged weights; train with optim.ema_decay, or leave out --ema")
    # one rank's rendezvous is nobody else's business: it needs no place in the run folder
    with tempfile.TemporaryDirectory() as meeting:
        accuracy, primary = _run(config, state, about, options.ema, out, Path(meeting) / "meet.json")
    print_table(accuracy_table(accuracy, primary, title=f"{path} {'(averaged weights)' if options.ema else ''}"))
    sys.stdout.write(f"outputs: {out}\n")


def _choose(folder: RunFolder, step: int | None, checkpoint: Any) -> tuple[Path, dict[str, Any]]:
    """Return the wanted checkpoint and what it says of its run.

    A damaged one is named but left where it is: an evaluation changes no run.
    """
    there = checkpoint.list_checkpoints(folder.checkpoints)
    wanted = [path for path in there if step is None or checkpoint.step_of(path) == step]
    for path in reversed(wanted):
        why = checkpoint.problem(path)
        if why is None:
            return path, checkpoint.look(path).about
        log.warning("%s is damaged: %s", path, why)
    of_step = "" if step is None else f" of step {step}"
    names = ", ".join(path.name for path in there) or "none"
    raise ValueError(f"{folder.checkpoints}: no whole checkpoint{of_step}; there: {names}")


def _refuse_strange_folder(out: Path) -> None:
    """Outputs may replace outputs, and nothing else that a user has."""
    inside = [entry.name for entry in out.iterdir()] if out.is_dir() else ["a file"]
    if out.exists() and inside and _MARK not in inside:
        raise ValueError(f"--out: {out} is there and holds no outputs of an evaluation; give a new or an empty folder")


def _run(
    config: RunConfig, state: dict[str, Any], about: dict[str, Any], ema: bool, out: Path, meeting: Path
) -> tuple[Accuracy, str]:
    from hrdc_hpc.engine.evaluation import Evaluator
    from hrdc_hpc.engine.outputs import OutputFiles
    from hrdc_hpc.engine.parts import build_model, eval_loader, open_images
    from hrdc_hpc.engine.place import Place
    from hrdc_hpc.engine.precision import pick_precision
    from hrdc_hpc.engine.processes import open_processes
    from hrdc_hpc.engine.state import load_for_evaluation, refuse_other_run

    with open_processes(Place(0, 1, 0, 1, meeting), config.compute) as processes:
        images = open_images(config, processes, local_first=True)
        refuse_other_run(about, config, images.fingerprint, precision=None)
        network, method = build_model(config, images.classes, processes.device)
        load_for_evaluation(network, state, ema=ema)
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


if __name__ == "__main__":
    sys.exit(main())
