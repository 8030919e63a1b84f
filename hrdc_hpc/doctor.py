"""What this machine and its cluster lack, and how to mend it: `python -m hrdc_hpc.doctor`. Torch-free.

On a login node it looks at what submitting needs, on a compute node (`srun python -m hrdc_hpc.doctor`, or --node) at
what a rank needs, on a machine without SLURM at what --cluster local needs. With --cfg the config, its data set and its
batch are looked at too; with --deep torch and DALI are tried out, in a process of their own.

Each line is ok, warning or problem. Exit codes: 0, also with warnings; 78 if something would stop a run.
--json prints {"role", "host", "problems", "warnings", "findings": [{"what", "level", "found", "means", "mend"}]}.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from hrdc_hpc.cluster.checkup import deep, machine, slurm, software, storage
from hrdc_hpc.cluster.checkup.finding import Finding, Role
from hrdc_hpc.cluster.exit_codes import Exit

_INDENT = len("warning ")
_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(Exit.DO_NOT_REQUEUE, f"doctor: {message} (see --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; the exit code."""
    args = _parser().parse_intermixed_args(sys.argv[1:] if arguments is None else list(arguments))
    if args.overrides and args.cfg is None:
        _parser().error("key=value goes with --cfg")
    role = role_here(node=args.node)
    findings = []
    try:
        for finding in examine(args, role):
            findings.append(finding)
            if not args.json:
                _show(finding)
    except BrokenPipeError:  # '| head' has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    except KeyboardInterrupt:
        return Exit.LEFT
    problems, warnings = (sum(one.level == level for one in findings) for level in ("problem", "warning"))
    if args.json:
        told = {"role": role, "host": socket.gethostname(), "problems": problems, "warnings": warnings}
        sys.stdout.write(json.dumps(told | {"findings": [asdict(one) for one in findings]}, indent=1) + "\n")
    else:
        what = {"login": "a login node", "node": "a compute node", "machine": "a machine without SLURM"}[role]
        sys.stdout.write(
            f"{socket.gethostname()}, looked at as {what}: {problems} problem{'s'[: problems != 1]},"
            f" {warnings} warning{'s'[: warnings != 1]}\n"
        )
    return Exit.DO_NOT_REQUEUE if problems else Exit.DONE


def role_here(*, node: bool = False) -> Role:
    """Return what this machine is looked at as: a compute node inside a job, a login node where there is sbatch."""
    if node or "SLURM_JOB_ID" in os.environ:
        return "node"
    return "login" if shutil.which("sbatch") else "machine"


def examine(args: argparse.Namespace, role: Role) -> Iterator[Finding]:
    """Yield all findings, the quick ones first."""
    yield from software.check(role)
    yield from machine.check(role)
    yield from storage.check(Path(args.out_dir), role)
    yield from slurm.check(role, args.partition)
    if args.cfg is not None:
        from hrdc_hpc.cluster.checkup import configuration  # pydantic and submitit take their time to import

        yield from configuration.check(args.cfg, args.overrides, role)
    if args.deep:
        yield from deep.check(role)


def _show(finding: Finding) -> None:
    """Write a finding: on a terminal in colour, and folded to its width."""
    from rich.console import Console
    from rich.text import Text

    bounded = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    console = Console(file=sys.stdout, width=None if bounded else 10_000, highlight=False, soft_wrap=True)
    texts = (f"{finding.what}: {finding.found}", finding.means, finding.mend and f"to mend it: {finding.mend}")
    room = max(40, console.width - _INDENT)
    lines = [line for text in texts for line in textwrap.wrap(text, room, break_on_hyphens=False)]
    console.print(Text.assemble((f"{finding.level:<{_INDENT}}", _COLOURS[finding.level]), lines[0]))
    for line in lines[1:]:
        console.print(Text(" " * _INDENT + line))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m hrdc_hpc.doctor", allow_abbrev=False,
        description="What this machine and its cluster lack, and how to mend it.",
    )  # fmt: skip
    parser.add_argument("--cfg", help="also look at this config, its data set and its batch")
    parser.add_argument("--partition", help="the partition that is meant; unset: all are told")
    parser.add_argument("--out-dir", default="runs", help="where runs are made (runs)")
    parser.add_argument("--deep", action="store_true", help="import and try torch and DALI, some 20 s")
    parser.add_argument("--node", action="store_true", help="look at this machine as a compute node")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config fields, with --cfg")
    return parser


if __name__ == "__main__":
    sys.exit(main())
