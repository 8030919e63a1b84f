"""Export a checkpoint of a run as one file that torch runs without this package: `python -m hrdc_hpc.export RUN`.

The file is a torch.export archive: a program from uint8 RGB images [B, side, side, 3], cropped as in the evaluation, to
a dict of float32 tensors: 'probabilities' by prediction (each head alone and every fusion), 'logits' by head,
'features'. Class names, names of heads and predictions, and how images are to be cropped stand in it as hrdc.json.

    told = {"hrdc.json": ""}
    program = torch.export.load("model.pt2", extra_files=told).module()
    answer = program(images)   # json.loads(told["hrdc.json"])["classes"] has the names
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hrdc_hpc
from hrdc_hpc.engine.trained import Trained, classes_of, network_of, open_checkpoint, run_config, step_argument
from hrdc_hpc.record.files import fsync_folder, naming, temporary_beside

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from hrdc_hpc.config.schema import RunConfig
    from hrdc_hpc.data.classes import ClassInfo
    from hrdc_hpc.methods.base import Method

_TOLD = "hrdc.json"
_FORMAT = 1
_ENDING = ".pt2"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(78, f"export: {message}; see --help\n")


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 'dynamic' or a number above 0; got {text!r}")
    return int(text)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = _Parser(
        prog="python -m hrdc_hpc.export",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--out", type=Path, required=True, help=f"a new file *{_ENDING}, or an earlier export")
    parser.add_argument(
        "--step", type=step_argument, metavar="N|best",
        help="the checkpoint of step N, or of the best evaluation on data.holdout (default: the newest whole one)",
    )  # fmt: skip
    parser.add_argument("--ema", action="store_true", help="export the averaged weights")
    parser.add_argument(
        "--batch", type=_batch, metavar="N|dynamic", help="images of a call (default: dynamic, any number of them)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export as the command line says; 0, 78 for a mistake, 1 for the world."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        _export(options)
    except (ValueError, RuntimeError, OSError) as error:
        sys.stderr.write(f"export: {error}\n")
        return 78 if isinstance(error, ValueError) else 1
    return 0


def _export(options: argparse.Namespace) -> None:
    folder, config = run_config(options.run)
    _refuse_strange_file(options.out)
    trained = open_checkpoint(folder, options.step, ema=options.ema)
    import torch

    from hrdc_hpc.engine.program import to_program
    from hrdc_hpc.engine.state import refuse_other_run

    refuse_other_run(trained.about, config, trained.about["fingerprint"], precision=None)
    classes = classes_of(trained.about, config)
    network, method = network_of(trained, config, classes, torch.device("cpu"))
    program = to_program(network, method, config.data, batch=options.batch)
    _write(options.out, program, json.dumps(_told(trained, config, method, classes, options.batch), indent=1))
    sys.stdout.write(f"{trained.path}{' (averaged weights)' if trained.ema else ''} -> {options.out}\n")


def _refuse_strange_file(out: Path) -> None:
    """An export may replace an export, and nothing else that a user has. Also asks for what writing it needs."""
    if out.suffix != _ENDING:
        raise ValueError(f"--out: {out} must end in {_ENDING}, as torch wants of the archives that torch.export loads")
    if not out.parent.is_dir():
        raise ValueError(f"--out: no folder {out.parent}; make it, or give another path")
    if os.path.lexists(out) and not _is_export(out):
        raise ValueError(f"--out: {out} is there and is not an export of this command; give another path")


def _is_export(path: Path) -> bool:
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(f"/extra/{_TOLD}") for name in archive.namelist())


def _told(
    trained: Trained, config: RunConfig, method: Method, classes: ClassInfo, batch: int | None
) -> dict[str, Any]:  # fmt: skip
    """What the file says of itself."""
    data = config.data
    return {
        "format": _FORMAT,
        "hrdc_hpc": hrdc_hpc.__version__,
        "run": config.name,
        "step": trained.step,
        "averaged_weights": trained.ema,
        "classes": list(classes.names),
        "heads": list(method.heads),
        "predictions": _predictions(method, classes.number),
        "primary": method.primary,
        "input": {
            "dtype": "uint8", "axes": "BHWC", "channels": "RGB", "batch": batch or "dynamic", "side": data.image_size,
            "shorter_side_before_centre_crop": data.eval_resize,
        },
        "normalised_inside": {"mean": list(data.mean), "std": list(data.std)},
    }  # fmt: skip


def _predictions(method: Method, classes: int) -> list[str]:
    import torch

    return list(method.predict(dict.fromkeys(method.heads, torch.zeros(1, classes))))


def _write(out: Path, program: ExportedProgram, told: str) -> None:
    """Put the file in place, whole."""
    import torch

    aside = temporary_beside(out)
    try:
        with naming(out), aside.open("xb") as file:
            torch.export.save(program, file, extra_files={_TOLD: told})
            file.flush()
            os.fsync(file.fileno())
        aside.replace(out)
        fsync_folder(out.parent)
    finally:
        aside.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
