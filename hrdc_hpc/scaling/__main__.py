"""Know before you spend: `python -m hrdc_hpc.scaling --cfg inat.yaml --partition gpu --nodes 1,2,4,8`. Torch-free.

Measures short runs of the true training job on several sizes, fits a model to them, and says what more nodes buy. A
study is a folder; the same command again goes on with it:

    scaling --cfg C --nodes 1,2,4 --mode weak,strong --repeats 3    a submission for each size
    scaling --cfg C --cluster local --gpus 1,2,4 --wait             within this machine
    scaling report STUDY [--predict 16,32]                          the report of what is there, at any time
    scaling predict --cfg C --profile P --nodes 1-512               on paper, nothing is run
    scaling --cfg C --to-accuracy overall=60 --batches 128,256      steps, epochs and GPU-hours to an accuracy

Exit codes: 0; 1 if a row failed or a size was refused (the others went on); 78 for a command line or config that is
wrong; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hrdc_hpc.cluster import launching, runs, submission, sweep_members
from hrdc_hpc.cluster.console import say
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.config.load import load
from hrdc_hpc.config.paths import absolute
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.scaling import commandline, plan, study, submit


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    args = commandline.parse(given)
    try:
        return _ACTS[args.act](args, [sys.executable, "-m", "hrdc_hpc.scaling", *given])
    except BrokenPipeError:  # '| head' has seen enough; nothing is left to be flushed into the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    except ValueError as error:
        _complain(str(error))
        return Exit.DO_NOT_REQUEUE
    except (submission.SubmissionRefused, OSError) as error:
        _complain(str(error))
        return Exit.FAILED
    except KeyboardInterrupt:
        _complain("interrupted")
        return Exit.LEFT


def _measure(args: argparse.Namespace, command: Sequence[str]) -> int:
    form = commandline.shape(args)
    training, measured = _configs(args)
    path = measured.out_dir / measured.name
    sizes = plan.sizes(form, training, measured, local=args.cluster == "local")
    rows = plan.rows(sizes, form.repeats, study.with_folder(path))
    ask = args.cluster == "slurm" and shutil.which("sbatch") is not None
    asked = submit.order(args.cluster, args.cfg, measured, rows, form, ask=ask)
    study.refuse_other_settings(path, training)
    if args.dry_run:
        submit.dry_run(args.cluster, asked, in_turn=args.in_turn)
        _complain_beforehand(asked, no_sbatch=args.cluster == "slurm" and not ask)
        return Exit.DONE
    code = submit.launch(args, asked, training, command)
    if code != Exit.LEFT and (args.wait or asked.finished):
        from hrdc_hpc.scaling import reporting  # numpy and more take their time to import

        reporting.report(path, wanted=args.efficiency)
    else:
        say(f"{launching.how_to_go_on(path)}\nreport:     {runs.report_command(path)}")
    return code


def _complain_beforehand(asked: submit.Order, *, no_sbatch: bool) -> None:
    """Tell what a real launch would tell, or stop for."""
    for note in asked.notes:
        _complain(f"note: {note}")
    if no_sbatch:
        _complain(f"launched here, this would stop: {launching.NO_SBATCH}")
    try:
        sweep_members.check_data(asked.todo)
    except ValueError as error:
        _complain(f"launched here, this would stop: {error}")


def _configs(args: argparse.Namespace) -> tuple[RunConfig, RunConfig]:
    """Return the config as it would be trained, and that of the measured runs, which has the study's name."""
    training = absolute(load(args.cfg, commandline.trained(args)))
    name = args.name or f"{training.name}-scaling"
    return training, absolute(load(args.cfg, [*commandline.measured(args), f"name={name}"]))


def _report(args: argparse.Namespace, _: Sequence[str]) -> int:
    from hrdc_hpc.scaling import accuracy, reporting

    path = Path(args.study).absolute()
    if accuracy.is_study(path):
        accuracy.report(path)
    else:
        reporting.report(path, wanted=args.efficiency, nodes=args.predict)
    return Exit.DONE


def _predict(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Predict by what the study of that name measured, or else on paper."""
    from hrdc_hpc.scaling import reporting

    form = commandline.shape(args)
    training, measured = _configs(args)
    path = measured.out_dir / measured.name
    if study.is_study(path) and form.nodes:
        say(f"predicted by what {path} measured; for a prediction on paper give another --name")
        reporting.report(path, wanted=args.efficiency, nodes=plan.thinned(form.nodes))
        return Exit.DONE
    form = replace(form, nodes=form.nodes and plan.thinned(form.nodes))
    sizes = plan.sizes(form, training, measured, local=False)
    folder = Path(args.report).absolute() if args.report else None
    reporting.on_paper(training, sizes, wanted=args.efficiency, command=command, classes=args.classes, folder=folder)
    return Exit.DONE


def _accuracy(args: argparse.Namespace, command: Sequence[str]) -> int:
    from hrdc_hpc.scaling import accuracy

    return accuracy.launch(args, command)


_ACTS = {"measure": _measure, "report": _report, "predict": _predict, "accuracy": _accuracy}


def _complain(text: str) -> None:
    sys.stderr.write(f"scaling: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
