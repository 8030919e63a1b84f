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
from typing import TYPE_CHECKING, Any

from hrdc_hpc.config.load import ConfigError, loads
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.table import accuracy_table, print_table

if TYPE_CHECKING:
    from hrdc_hpc.engine.evaluation import Accuracy

log = logging.getLogger(__name__)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m hrdc_hpc.evaluate", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="operational settings, e.g. compute.device=cpu"
    )
    parser.add_argument("--step", type=int, help="the checkpoint of this step (default: the newest whole one)")
    parser.add_argument("--ema", action="store_true", help="evaluate the averaged weights")
    parser.add_argument("--out", type=Path, help="where to write (default: RUN/report/step-<n>[-ema])")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says; 0, or 78 for a mistake that would happen again."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        _evaluate(options)
    except (ConfigError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 78
    return 0


def _evaluate(options: argparse.Namespace) -> None:
    folder = RunFolder(options.run)
    if not folder.config.is_file():
        raise ValueError(f"{options.run}: not a run folder, it has no config.yaml; give the path that launch printed")
    config = loads(folder.config.read_text(), str(folder.config), options.overrides)
    from hrdc_hpc.engine import checkpoint  # torch is imported only once the arguments are found to be right

    path = _choose(folder, options.step, checkpoint)
    state = checkpoint.load(path)
    if options.ema and "ema" not in state:
        raise ValueError(f"{path}: holds no averaged weights; train with optim.ema_decay, or leave out --ema")
    suffix = "-ema" if options.ema else ""
    out = options.out or folder.report / f"step-{state['step']}{suffix}"
    # one rank's rendezvous is nobody else's business: it needs no place in the run folder
    with tempfile.TemporaryDirectory() as meeting:
        accuracy, primary = _run(config, state, options.ema, out, Path(meeting))
    print_table(accuracy_table(accuracy, primary, title=f"{path} {'(averaged weights)' if options.ema else ''}"))
    sys.stdout.write(f"outputs: {out}\n")


def _choose(folder: RunFolder, step: int | None, checkpoint: Any) -> Path:
    """Return the wanted checkpoint. A damaged one is named but left where it is: an evaluation changes no run."""
    whole = checkpoint.list_checkpoints(folder.checkpoints)
    if step is not None:
        whole = [path for path in whole if path.name == checkpoint.folder_name(step)]
    for path in reversed(whole):
        why = checkpoint.problem(path)
        if why is None:
            return Path(path)
        log.warning("%s is damaged: %s", path, why)
    there = ", ".join(path.name for path in checkpoint.list_checkpoints(folder.checkpoints)) or "none"
    wanted = "no whole checkpoint" if step is None else f"no whole checkpoint of step {step}"
    raise ValueError(f"{folder.checkpoints}: {wanted}; there: {there}")


def _run(config: RunConfig, state: dict[str, Any], ema: bool, out: Path, meeting: Path) -> tuple[Accuracy, str]:
    from hrdc_hpc.engine.buffers import FlatBuffers, average
    from hrdc_hpc.engine.evaluation import Evaluator
    from hrdc_hpc.engine.outputs import OutputFiles
    from hrdc_hpc.engine.parts import build_model, eval_loader, open_images
    from hrdc_hpc.engine.place import Place
    from hrdc_hpc.engine.precision import pick_precision
    from hrdc_hpc.engine.processes import open_processes, rendezvous_file

    place = Place(0, 1, 0, 1, rendezvous_file(meeting, "evaluate"))
    with open_processes(place, config.compute) as processes:
        images = open_images(config, processes, local_first=True)
        network, method = build_model(config, images.classes, processes.device)
        network.load_state_dict(state["network"])
        if ema:
            buffers = FlatBuffers(network)
            buffers.flat.copy_(average(state["ema_buffers_by_rank"]))
            network.load_state_dict(state["ema"], strict=False)
        precision = pick_precision(config.compute, processes.device)
        loader = eval_loader(config, images.evaluation, processes)
        evaluator = Evaluator(network, method, loader, config, images.classes, precision, processes)
        aside = out.with_name(f".tmp-{out.name}")
        shutil.rmtree(aside, ignore_errors=True)
        files = OutputFiles(aside, len(images.evaluation.labels_N))
        accuracy = evaluator.run(see=files.see)
        files.close()
        (aside / "classes.json").write_text(json.dumps(images.classes.names, indent=1))
        (aside / "accuracy.json").write_text(json.dumps(accuracy, indent=1))
        shutil.rmtree(out, ignore_errors=True)
        aside.rename(out)
    return accuracy, method.primary


if __name__ == "__main__":
    sys.exit(main())
