"""Start, resume or follow a run: `python -m hrdc_hpc.launch --partition gpu --cfg inat.yaml`. Torch-free.

Without --cluster local the target is SLURM, and where there is no sbatch that is an error: nothing trains on a login
node by accident. Exit codes: hrdc_hpc/cluster/exit_codes.py; of a command line or config that is wrong, and of a launch
that is refused (the run is running, or was started with other settings): 78.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hrdc_hpc.cluster import commandline, find_runs, launching, submission, sweep
from hrdc_hpc.cluster.console import complain
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.config.load import load
from hrdc_hpc.config.paths import absolute


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    args = commandline.parse(given)
    try:
        return _carry_out(args, [sys.executable, "-m", "hrdc_hpc.launch", *given])
    except submission.SubmissionRefused as error:
        complain(str(error))
        return Exit.FAILED
    except BrokenPipeError:  # '| head' has seen enough; nothing is left to be flushed into the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    except OSError as error:
        complain(_trouble(error))
        return Exit.FAILED
    except ValueError as error:  # the user's: config, data, a launch that is refused
        complain(str(error))
        return Exit.DO_NOT_REQUEUE
    except KeyboardInterrupt:
        complain("interrupted")
        return Exit.LEFT


def _carry_out(args: argparse.Namespace, command: Sequence[str]) -> int:
    if args.follow is not None:
        return _follow(Path(args.follow).absolute(), find_runs.hint(args.follow))
    if args.sweep is not None or args.resubmit_failed is not None:
        from hrdc_hpc.cluster import sweep_launch

        return (sweep_launch.resubmit if args.sweep is None else sweep_launch.launch)(args, command)
    return launching.launch(args, absolute(load(args.cfg, commandline.overrides(args))), command)


def _follow(folder: Path, hint: str) -> int:
    if sweep.is_sweep(folder):
        from hrdc_hpc.cluster import sweep_follow, sweep_members

        return sweep_follow.follow(folder, sweep_members.of_sweep(sweep.read(folder)))
    return launching.follow_existing(folder, hint)


_NEXT = {
    frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG}): "make room there, or choose another --out-dir",
    frozenset({errno.EACCES, errno.EPERM, errno.EROFS}): "choose an --out-dir in which you may write",
    frozenset({errno.EEXIST, errno.ENOTDIR}): "a file is where a folder should be; choose another --out-dir",
}


def _trouble(error: OSError) -> str:
    """Say where, what, and what to do."""
    where = error.filename2 or error.filename
    what = f"{where}: {error.strerror}" if where else str(error)
    then = next((text for numbers, text in _NEXT.items() if error.errno in numbers), "put that right")
    return f"{what}. To go on: {then}, then give the same command again"


if __name__ == "__main__":
    sys.exit(main())
