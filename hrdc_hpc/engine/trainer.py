"""One attempt at a run, from the lease to the last word; the loop itself is in loop.py.

Where a run starts from, in this order:
1. the newest checkpoint in the run folder that is whole, if there is one; damaged ones are set aside with a message;
2. otherwise the initial weights, a function of the seed.
Nothing else is read: no pickle, no environment, nothing that a signal handler wrote.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, closing
from pathlib import Path

from hrdc_hpc.config.load import loads
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.engine import health, journal
from hrdc_hpc.engine.agreement import Agreement
from hrdc_hpc.engine.announce import note_left_out
from hrdc_hpc.engine.around import Around, Outcome
from hrdc_hpc.engine.deadline import Deadline
from hrdc_hpc.engine.decoding import decoded
from hrdc_hpc.engine.faults import Faults
from hrdc_hpc.engine.journal import Journal, RunJournal, SilentJournal, kept
from hrdc_hpc.engine.loop import Run
from hrdc_hpc.engine.measure import Measuring
from hrdc_hpc.engine.parts import build_parts, open_images
from hrdc_hpc.engine.peers import Peers, Sign
from hrdc_hpc.engine.place import Place, Stop, Stopped
from hrdc_hpc.engine.processes import call_off, open_processes
from hrdc_hpc.engine.profile import Profiler
from hrdc_hpc.engine.staging import staging
from hrdc_hpc.engine.startup import Startup
from hrdc_hpc.engine.watchdog import OnLeave, Watchdog
from hrdc_hpc.record.attempts import Attempt, begin_attempt
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease, LeaseHeld

__all__ = ["Outcome", "Run", "train"]

log = logging.getLogger(__name__)

_LEASE_WAIT_S = 90.0
"""Longer than a lease lives: a holder that died without a trace has lost it by then."""
_LOOK_S = 2.0
"""How long a rank that waits for the lease may not heed a stop."""


def train(run: Path, place: Place, stop: Stop, on_leave: OnLeave | None = None) -> Outcome:
    """Train the run in folder `run` to its end, or until told to stop; called on every rank.

    Resumes from the folder's newest whole checkpoint. If the outcome is not finished, a checkpoint of the last step
    has been committed, unless the run was told to stop before it had done any. With config.measure it measures steps
    instead, see measure.py, and keeps nothing of what is learnt. Raises ValueError for a config or data
    set that cannot be trained (DataError: damaged files), BadNode for a node that fails its check, RuntimeError for
    what the world did. A rank that hangs does not return: it calls `on_leave` and ends its process, see watchdog.py.
    """
    folder = RunFolder(run)
    config = loads(folder.config.read_text(), str(folder.config))
    startup = Startup()
    with Watchdog(config.guard, place, folder, on_leave) as watchdog, watchdog.heeding_time_outs():
        try:
            return _attempt(folder, config, place, stop, watchdog, startup)
        except Stopped as told:
            log.info("stopped before the start by %s; nothing is lost", told.reason)
            return Outcome(False, told.reason, 0)


def _attempt(
    folder: RunFolder, config: RunConfig, place: Place, stop: Stop, watchdog: Watchdog, startup: Startup
) -> Outcome:  # fmt: skip
    faults = Faults.told(place.rank)
    deadline = Deadline(stop.end_time, watchdog.times)
    with ExitStack() as stack:
        lease = attempt = None
        records: Journal = SilentJournal()
        if place.rank == 0:  # before peers are met: a second launch is refused at once
            lease, attempt = _be_the_writer(folder, place, stop, stack)
            written = stack.enter_context(journal.closing(RunJournal(folder, attempt.number, config.log.tensorboard)))
            watchdog.before_leaving(written.left)
            records = written
        records.phase("startup", "begin", 0)
        gpus = config.cluster.gpus_per_node
        processes = stack.enter_context(open_processes(place, config.compute, gpus_per_node=gpus, stop=stop))
        if config.guard.watchdog:  # it has more to say, so it comes first
            processes.set_timeout(2 * config.guard.watchdog_start_s)
        homes = processes.everybody(health.home_of(place))
        peers = stack.enter_context(closing(Peers(processes.store, place.rank, place.world_size, watchdog.beat_s)))
        watchdog.among(peers, homes)
        stack.enter_context(watchdog.heeding_time_outs())  # while the store is there, to ask who is missing
        peers.begin(lambda beat: Sign(beat, *watchdog.where()), watchdog.peer_failed)
        faults.attempt(processes.from_first(attempt.number if attempt else 0))
        if faults:
            records.write("faults", 0, faults=str(faults))
        agreement = Agreement(processes, stop, deadline)
        startup.done("meeting")
        if config.guard.health_check:
            watchdog.at("health check", 0)
            seconds = health.check(processes, place, folder, homes, faults, config.checkpoint.keep_last)
            records.write("health", 0, seconds=seconds, nodes=sorted({str(home) for home in homes}))
        startup.done("health check")
        watchdog.at("opening the data set", 0)
        first_on_node = place.local_rank == 0
        images = open_images(config, processes, local_first=first_on_node, stop=stop, together=agreement.together)
        note_left_out(images, records)
        stack.enter_context(staging(config.data, images, place, stop, records))
        watchdog.at("decoding the training images", 0)
        images = stack.enter_context(decoded(config.data, images, place, stop, processes.cores, agreement.together))
        startup.done("data set")
        watchdog.at("building the network", 0)
        parts = build_parts(config, images, processes, poisonable=faults.poisons)
        stack.callback(parts.close)
        startup.done("network")
        window = config.log.profile_steps if attempt else None
        profiler = Profiler(window, folder.profile, attempt.number if attempt else 0, processes.device)
        stack.callback(profiler.close)
        around = Around(place, lease, records, profiler, agreement, deadline, watchdog, peers, faults, homes, startup)
        if config.measure:
            return Measuring(folder, config, parts, processes, around).to_the_end()
        return Run(folder, config, parts, processes, around).to_the_end()


def _be_the_writer(folder: RunFolder, place: Place, stop: Stop, stack: ExitStack) -> tuple[Lease, Attempt]:
    """Take the lease, for as long as the stack lasts, and a number; the ranks that wait are told if that fails."""
    try:
        lease = stack.enter_context(kept(_take_lease(folder, place, stop)))
        return lease, begin_attempt(folder, {**place.job, "world_size": place.world_size})
    except Stopped as told:
        call_off(place, "it was told to stop", stopped=told.reason)
        raise
    except Exception as error:
        call_off(place, str(error))
        raise


def _take_lease(folder: RunFolder, place: Place, stop: Stop) -> Lease:
    """Wait for the lease, but not beyond a stop. Raises LeaseHeld or Stopped."""
    deadline = time.monotonic() + _LEASE_WAIT_S
    while True:
        left_s = deadline - time.monotonic()
        try:
            return Lease.acquire(folder, place.job, wait_s=max(0.0, min(_LOOK_S, left_s)))
        except LeaseHeld:
            if reason := stop.reason():
                raise Stopped(reason) from None
            if left_s <= _LOOK_S:
                raise
