"""Stands in for hrdc_hpc/engine/trainer.py in a copy of the package: no torch; does what a note says."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from hrdc_hpc.config.load import loads
from hrdc_hpc.engine.place import Place, Stop
from hrdc_hpc.record import measurement
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease
from hrdc_hpc.record.measurement import Measurement, Share
from hrdc_hpc.record.metrics import MetricsWriter

MARKER = "first"


@dataclass(frozen=True)
class Outcome:
    """As the real one."""

    finished: bool
    reason: str
    step: int


def train(run: Path, place: Place, stop: Stop, on_leave: object = None) -> Outcome:
    """Leave a trace of what this rank saw, then behave as told by run/../behave; of a sweep, by runs/behave[-name]."""
    seen = {
        "file": __file__, "marker": MARKER, "world_size": place.world_size, "job": place.job, "python_path": sys.path,
        "torch_variables": [name for name in ("MASTER_ADDR", "RANK") if name in os.environ],
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "setup": os.environ.get("FROM_SETUP"),
        "rendezvous": str(place.rendezvous),
    }  # fmt: skip
    (run / f"saw-{place.rank}.json").write_text(json.dumps(seen))
    above = (run.parent.parent / f"behave-{run.name}", run.parent / "behave", run.parent.parent / "behave")
    behave = next(note for note in above if note.exists()).read_text()
    if behave == "bad data" and place.rank == 1:
        raise ValueError("data.dataset: no such image")
    if behave == "killed" and place.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if behave != "finish":  # a collective that waits for its peers
        lease = Lease.acquire(RunFolder(run), place.job) if place.rank == 0 else None
        print("waiting", flush=True)
        while stop.reason() is None:
            time.sleep(0.02)
        time.sleep(5 if "slowly" in behave else 0)
        if lease:
            lease.release()
        return Outcome(False, stop.reason() or "", 3)
    if place.rank == 0:
        while len(list(run.glob("saw-*.json"))) < place.world_size:  # ranks that train end together
            time.sleep(0.02)
        if loads((run / "config.yaml").read_text(), place="config.yaml").measure:
            _write_measurement(run, place)
        else:
            _write_results(run)
    return Outcome(True, "finished", 8)


def _write_measurement(run: Path, place: Place) -> None:
    """Twice the ranks take 1.25 times as long for a step of 32 images each."""
    batch, step_s = 32 * place.world_size, 0.08 + 0.02 * place.world_size
    found = Measurement(
        world_size=place.world_size, ranks_per_node=place.world_size, global_batch=batch, images="real", warm_up=1,
        windows={"as_is": [[step_s] * 5], "resident": [[step_s] * 5]},
        shares=Share(data_wait_s=0.0, compute_s=step_s, communication_s=0.0, optimizer_s=0.0), gradient_bytes=400,
        buckets=[], all_reduces=[], backend="gloo", interface=None, nodes=[], precision="fp32",
        startup_s={"total": 1.0}, checkpoint_bytes=1, checkpoint_stall_s=0.0, checkpoint_s=0.0,
    )  # fmt: skip
    measurement.write(run, found)
    told = {"nodes": 1, "world_size": place.world_size, "global_batch": batch, "step_s": step_s}
    RunFolder(run).write_summary({"measured": True, "step": 5, "images_per_s": batch / step_s, **told})


def _write_results(run: Path) -> None:
    folder, shares = RunFolder(run), {"overall": 0.5, "many": 0.75, "medium": 0.5, "few": 0.25}
    metrics = MetricsWriter(folder, 1)
    metrics.write("train", 8, epoch=1, loss=1.5, images_per_s=64.0, eta_s=0.0)
    metrics.write("eval", 8, epoch=1, primary="fused", accuracy={"fused": shares}, seconds=0.1)
    metrics.write("checkpoint", 8, seconds=0.1, stall_s=0.0, bytes=1)
    metrics.close()
    summary = {"step": 8, "epoch": 1, "primary": "fused", "accuracy": {"fused": shares}, "accuracy_ema": None}
    folder.write_summary(summary)
