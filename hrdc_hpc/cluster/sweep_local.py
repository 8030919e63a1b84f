"""A sweep on this machine: its elements as local runs, one after another or some at once. Torch-free.

The launcher starts them, so it must stay: killed, it leaves those at work to finish and starts no others; the same
command goes on where that left it.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Sequence

from hrdc_hpc.cluster import launching, runs, sweep_follow
from hrdc_hpc.cluster.console import say
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.cluster.jobs import last_job
from hrdc_hpc.cluster.sweep import Sweep
from hrdc_hpc.cluster.sweep_members import Asked, Member
from hrdc_hpc.cluster.sweep_submit import claimed
from hrdc_hpc.record.lease import Lease
from hrdc_hpc.record.manifest import collect


def run(asked: Sweep, members: Sequence[Member], todo: Sequence[Member], at_once: int, command: Sequence[str]) -> int:
    """Run the elements `todo`, at most `at_once` at a time, and follow all `members`; the exit code.

    Ctrl-C has those at work save and stop. Raises ValueError where several would share GPUs.
    """
    gpus = todo[0].config.cluster.gpus_per_node if todo else 0
    if at_once > 1 and gpus:
        raise ValueError(
            f"--array-parallelism {at_once} with {gpus} GPUs each: on this machine elements with GPUs run one at a time"
        )
    with claimed(asked) as (there, claim):
        manifest = functools.cache(lambda: collect(command))
        ask = Asked(todo)
        for member in todo:  # all of them, so that what is left of a sweep that was killed can be resubmitted
            with runs.claimed(member.config, member.run, manifest, ask) as found:
                if found.state != "finished":
                    for note in runs.prepare(found, member.config, there.code):
                        say(note)
        starter = _Starter(todo, at_once, there, claim)
        try:
            return sweep_follow.follow(there.path, members, starter)
        except KeyboardInterrupt:
            return _stop(todo)


class _Starter:
    """Starts the next elements when there is room."""

    def __init__(self, todo: Sequence[Member], at_once: int, there: Sweep, claim: Lease) -> None:
        self._left, self._at_once, self._there, self._claim = list(todo), at_once, there, claim

    def __call__(self, at_work: int) -> bool:
        """`at_work`: elements that run already. Returns whether some are left."""
        self._claim.renew()
        while self._left and at_work < self._at_once:
            self._start(self._left.pop(0))
            at_work += 1
        return bool(self._left)

    def _start(self, member: Member) -> None:
        try:
            with runs.claimed(member.config, member.run, dict) as found:
                if found.state != "finished":
                    runs.prepare(found, member.config, self._there.code)
                    launching.hand_over("local", member.config, member.run)
        except runs.AtWork as error:  # by another command, since we looked
            say(str(error))


def _stop(todo: Sequence[Member]) -> int:
    say("\nstopping the elements at work: they save first (Ctrl-C again: at once; what was saved before stays)")
    for number in (signal.SIGTERM, signal.SIGKILL):
        for member in todo:
            job = last_job(member.run)
            if job is not None and job.kind == "local":
                launching.kill(member.run, job, number)
        try:
            sweep_follow.watch_to_the_end(sweep_follow.Watch(todo))
        except KeyboardInterrupt:
            continue
        break
    return Exit.LEFT
