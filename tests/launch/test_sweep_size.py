"""Sweeps that are large: asking before they are submitted, and splitting where the cluster's limits ask."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hrdc_hpc
from hrdc_hpc.cluster import array
from hrdc_hpc.cluster.jobs import cut_off, last_job
from hrdc_hpc.launch import main

from launching import launch
from sweeps import NAMES, SWEEP, elements_given, finish, queue

pytestmark = pytest.mark.slow

MANY_SBATCH = """#!/bin/bash
echo call >> "$FAKE/calls"; number=$(wc -l < "$FAKE/calls"); cp "$1" "$FAKE/given-$number.sbatch"
[ "$number" = "$(cat "$FAKE/refused" 2>/dev/null)" ] && { echo "sbatch: error: not today" >&2; exit 1; }
echo "Submitted batch job $((100 * number))"
"""


# asking


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 0),
        (["--ask-elements", "5"], 78),
        (["--ask-elements", "5", "--yes"], 0),
        (["--gpus-per-node", "8", "--nodes", "2", "--time", "62"], 0),
        (["--gpus-per-node", "8", "--nodes", "2", "--time", "63"], 78),
        (["--gpus-per-node", "8", "--nodes", "1-2", "--time", "63"], 78),
        (["--gpus-per-node", "8", "--nodes", "2", "--time", "63", "--ask-hours", "101"], 0),
    ],
)
def test_a_large_sweep_wants_a_yes(
    place: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], code: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert launch(*arguments, *SWEEP) == code
    assert (slurm / "calls").exists() == (code == 0)
    if code:
        shown = capsys.readouterr()
        assert "add --yes" in shown.err
        assert "-hours" in shown.out
        assert not (place / "runs").exists()


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("\n", 78), ("", 78), ("n\n", 78)])
def test_the_answer_counts(place: Path, slurm: Path, answer: str, code: int) -> None:
    """On a real terminal."""
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "hrdc_hpc.launch", "--cfg", "small.yaml", "--ask-elements", "5", *SWEEP],
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(hrdc_hpc.__file__).parents[1])},
    )  # fmt: skip
    os.write(ours, (answer or "\x04").encode())
    output, _ = process.communicate(timeout=30)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == code, output
    assert "more than 5 elements" in output
    assert (slurm / "calls").exists() == (code == 0)


# splitting


@pytest.mark.parametrize(
    ("count", "throttle", "limit", "sizes", "throttles", "after"),
    [
        (6, 2, None, [6], [2], [None]),
        (6, 16, 1001, [6], [6], [None]),
        (6, 2, 4, [3, 3], [1, 1], [None, None]),
        (7, 5, 3, [3, 2, 2], [2, 2, 1], [None, None, None]),
        (7, 2, 2, [2, 2, 2, 1], [1, 1, 1, 1], [None, None, 0, 1]),
        (5, 1, 2, [2, 2, 1], [1, 1, 1], [None, 0, 1]),
    ],
)
def test_parts(
    count: int, throttle: int, limit: int | None, sizes: list[int], throttles: list[int], after: list[int | None]
) -> None:
    parts = array.parts(count, throttle, limit)
    assert [part.count for part in parts] == sizes
    assert [part.first for part in parts] == [sum(sizes[:index]) for index in range(len(sizes))]
    assert [part.throttle for part in parts] == throttles
    assert [part.after for part in parts] == after
    assert sum(part.throttle for part in parts if part.after is None) <= throttle


@pytest.fixture
def small_arrays(slurm: Path) -> Path:
    """A SLURM whose arrays have at most two elements, and whose jobs have ids of their own."""
    (slurm / "sbatch").write_text(MANY_SBATCH)
    config = (Path(__file__).parents[1] / "cluster" / "slurm-22.05" / "config.txt").read_text()
    (slurm / "config").write_text(re.sub(r"(MaxArraySize +=).*", r"\1 2", config))
    (slurm / "scontrol").write_text('#!/bin/bash\n[ "$2" = config ] && cat "$FAKE/config"; exit 0\n')
    (slurm / "scontrol").chmod(0o755)
    return slurm


def test_a_sweep_larger_than_an_array_is_several_that_keep_the_throttle(
    place: Path, small_arrays: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("--array-parallelism", "2", *SWEEP) == 0
    texts = [(small_arrays / f"given-{number}.sbatch").read_text() for number in (1, 2, 3)]
    assert all("#SBATCH --array=0-1%1\n" in text for text in texts)
    assert ["dependency" in text for text in texts] == [False, False, True]
    assert "#SBATCH --dependency=afterany:100\n" in texts[2]
    jobs = [last_job(place / "runs" / "small" / name) for name in NAMES]
    assert [job.job_id if job else None for job in jobs] == ["100_0", "100_1", "200_0", "200_1", "300_0", "300_1"]
    assert "once array 100 has ended" in capsys.readouterr().out


def test_a_later_array_that_is_refused_leaves_the_earlier_ones(
    place: Path, small_arrays: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_arrays / "refused").write_text("2")
    assert launch(*SWEEP) == 1
    error = capsys.readouterr().err
    assert "not today" in error
    assert "1 arrays were taken before: 100" in error
    folder = place / "runs" / "small"
    assert sorted(path.name for path in folder.glob("method-*")) == NAMES[:2]
    assert [entry["job_id"] for entry in json.loads((folder / "sweep.json").read_text())["arrays"]] == ["100"]
    assert not cut_off(folder / NAMES[0])


def test_no_more_than_the_association_allows(
    place: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hrdc_hpc.cluster.limits.submit_limit", lambda: 5)  # sacctmgr: tests/cluster, tests/slurm
    queue(slurm, "1", "2")
    assert launch(*SWEEP) == 0
    assert elements_given(slurm) == NAMES[:3]
    assert "only 3 more jobs may be queued" in capsys.readouterr().out
    queue(slurm)
    for name in NAMES[:3]:
        finish(place / "runs" / "small" / name)
    assert main(["--resubmit-failed", "runs/small"]) == 0
    assert elements_given(slurm) == NAMES[3:]
    assert f"{NAMES[3]}    was never submitted" in capsys.readouterr().out
