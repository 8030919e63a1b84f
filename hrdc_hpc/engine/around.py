"""What a run has around its parts, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field

from hrdc_hpc.engine.agreement import Agreement
from hrdc_hpc.engine.deadline import Deadline
from hrdc_hpc.engine.faults import Faults
from hrdc_hpc.engine.journal import Journal
from hrdc_hpc.engine.peers import Peers
from hrdc_hpc.engine.place import Place
from hrdc_hpc.engine.profile import Profiler
from hrdc_hpc.engine.startup import Startup
from hrdc_hpc.engine.watchdog import Watchdog
from hrdc_hpc.record.health import Home
from hrdc_hpc.record.lease import Lease


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    finished: bool
    reason: str
    step: int


@dataclass(frozen=True)
class Around:
    """What a run has around its parts on one rank: who is told, who is asked, who looks on."""

    place: Place
    lease: Lease | None
    journal: Journal
    profiler: Profiler
    agreement: Agreement
    deadline: Deadline
    watchdog: Watchdog
    peers: Peers
    faults: Faults
    homes: list[Home]
    startup: Startup = field(default_factory=Startup)
