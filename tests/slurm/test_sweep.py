"""A sweep on a real SLURM: an array of six, throttle two, one element preempted, one failing until its data is back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hrdc_hpc.cluster.sweep_results import result_rows
from hrdc_hpc.data.datasets import digits_lt
from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.folder import RunFolder

from slurm_cluster import Slurm
from slurm_runs import logs, repeated_steps, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.dali, pytest.mark.slow, pytest.mark.timeout(600)]

ROOTS = [f"d{number}" for number in range(6)]
STEPS = ("optim.epochs=24", "checkpoint.every_steps=10", "log.every_steps=1", "eval.every_epochs=12")
NAMES = [f"root-{root}" for root in ROOTS]


def launch(slurm: Slurm, place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command(slurm, place, "launch", *arguments)


def command(slurm: Slurm, place: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"hrdc_hpc.{module}", *arguments], cwd=place, check=False, timeout=300,
        capture_output=True, text=True,
        env={**slurm.env, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONSAFEPATH": "1"},
    )  # fmt: skip


@contextmanager
def lost_data(root: Path) -> Iterator[None]:
    """Have a folder of digits without the digits in the place of a link to them."""
    there = root.readlink()
    root.unlink()
    empty = digits_lt.folder(digits_lt.Options(root=root))
    (empty / "train").mkdir(parents=True)
    (empty / "meta.json").write_text("{}")
    yield
    shutil.rmtree(root)
    root.symlink_to(there)


@contextmanager
def most_at_once(slurm: Slurm, array: str) -> Iterator[list[int]]:
    """Numbers of the array's elements that run, sampled all the while."""
    seen: list[int] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.3):
            text = slurm.run("squeue", "--noheader", "--array", "--states=RUNNING", f"--jobs={array}", check=False)
            seen.append(len(text.splitlines()))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_an_array_with_a_preempted_and_a_failing_element(slurm: Slurm, digits: Path, tmp_path: Path) -> None:
    for root in ROOTS:
        (tmp_path / root).symlink_to(digits)
    shape = ["--partition", "gpu", "--ranks-per-node", "1", "--sbatch", "exclusive", "--array-parallelism", "2"]
    swept = ["--sweep", f"data.dataset.root={','.join(ROOTS)}"]
    submitted = launch(slurm, tmp_path, "--cfg", "digits_lt.yaml", "--name", "sweep", *shape, *STEPS, *swept)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    with lost_data(tmp_path / "d5"):  # its turn comes last
        undergo(slurm, tmp_path)
    resubmit(slurm, tmp_path)


def undergo(slurm: Slurm, tmp_path: Path) -> None:
    """Preempt the first element, and let the sweep end."""
    sweep = tmp_path / "runs" / "sweep"
    first = sweep / NAMES[0]
    noted = json.loads((sweep / "sweep.json").read_text())
    (array,) = (entry["job_id"] for entry in noted["arrays"])

    with most_at_once(slurm, array) as running:
        wait_for(lambda: any((first / "checkpoints").glob("step-*")), first)
        node = slurm.show(f"{array}_0")["NodeList"]
        urgent = slurm.submit("sleep 2", tmp_path, "--partition=urgent", f"--nodelist={node}", "--exclusive")
        slurm.wait_running(f"{array}_0", 120, restarts=1)
        followed = launch(slurm, tmp_path, "--follow", str(sweep))
    assert slurm.wait_job(urgent, 60) == "COMPLETED"
    assert max(running) == 2

    everything = followed.stdout + followed.stderr
    assert followed.returncode == 1, everything
    assert "1 of 6 did not finish" in everything, everything
    assert f"{NAMES[5]}: rank 0 on" in everything
    assert "exit code 78" in everything
    assert [name for name in NAMES if RunFolder(sweep / name).state() == "finished"] == NAMES[:5], everything

    told = json.loads(command(slurm, tmp_path, "status", str(sweep), "--json").stdout)["runs"]
    found = {Path(one["run"]).name: (one["state"], one["attempts"], one["job_id"]) for one in told}
    wanted = {name: ("finished", 1 + (index == 0), f"{array}_{index}") for index, name in enumerate(NAMES[:5])}
    assert found == wanted | {NAMES[5]: ("failed", 1, f"{array}_5")}

    attempts = read_attempts(RunFolder(first))
    assert [(a["info"]["job_id"], a["info"]["restart_count"]) for a in attempts] == [
        (f"{array}_0", 0),
        (f"{array}_0", 1),
    ]
    assert "SIGTERM" in attempts[1]["previous_end"]
    assert repeated_steps(first) == 0
    for index, name in enumerate(NAMES[1:5], start=1):
        assert [a["info"]["job_id"] for a in read_attempts(RunFolder(sweep / name))] == [f"{array}_{index}"], name
        assert str(sweep / "arrays" / "1" / str(index) / "code") in logs(sweep / name), "ran from the shared snapshot"


def resubmit(slurm: Slurm, tmp_path: Path) -> None:
    """What failed is submitted again, and nothing else."""
    sweep = tmp_path / "runs" / "sweep"
    again = launch(slurm, tmp_path, "--resubmit-failed", str(sweep), "--wait")
    assert again.returncode == 0, again.stdout + again.stderr + logs(sweep / NAMES[5])
    assert "6 elements: 1 to submit, 5 finished" in again.stdout
    assert [entry["elements"] for entry in json.loads((sweep / "sweep.json").read_text())["arrays"]] == [
        NAMES,
        [NAMES[5]],
    ]
    assert sum(len(row.finished) for row in result_rows(sweep)) == 6
    assert len(read_attempts(RunFolder(sweep / NAMES[1]))) == 1, "the others were left alone"
    nothing = launch(slurm, tmp_path, "--resubmit-failed", str(sweep))
    assert "nothing is left to submit" in nothing.stdout
