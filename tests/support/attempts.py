"""Run folders with a past, written by the product's own writers, without training."""

from __future__ import annotations

from pathlib import Path

from hrdc_hpc.cluster.ends import note_end
from hrdc_hpc.config.load import loads, to_yaml
from hrdc_hpc.record.attempts import begin_attempt
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import MetricsWriter

from runs import SMALL


def empty_run(parent: Path, name: str = "run", *overrides: str) -> Path:
    """A run folder before its first attempt."""
    config = loads(SMALL.format(name=name, digits="nowhere"), "test", list(overrides))
    return RunFolder.create(parent / name, config_text=to_yaml(config), manifest={}).path


def add_attempt(
    run: Path, *, job: str = "7", restart: int = 0, resumed: int = 0, steps: int = 10, saved: int | None = None,
    farewell: str | None = None, end: tuple[int, str, str | None] | None = None, rank: int | None = 0,
    cluster: str = "slurm",
) -> None:  # fmt: skip
    """Append an attempt: what its job was, from where it went on, how far it came, what it saved, how it ended.

    `farewell`: what the trainer says; `end`: exit code, words and cause that a rank, or the batch script, writes.
    """
    info: dict[str, str | int] = {"cluster": cluster, "job_id": job, "restart_count": restart, "world_size": 2}
    attempt = begin_attempt(RunFolder(run), {**info, "nodes": "n[1-2]", "host": "here"})
    metrics = MetricsWriter(RunFolder(run), attempt.number)
    metrics.write("phase", resumed, name="startup", event="end")
    for step in range(resumed + 1, resumed + steps + 1):
        metrics.write("train", step, epoch=0, loss=1.0)
    if saved is not None:
        metrics.write("checkpoint", saved, seconds=0.1, bytes=1)
    if farewell:
        metrics.write("end", resumed + steps, reason=farewell)
    metrics.close()
    if end:
        code, reason, cause = end
        more = {"cause": cause} if cause else {}
        note_end(run, job_id=job, rank=rank, code=code, reason=reason, restart_count=restart, **more)
