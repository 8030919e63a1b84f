"""The local controller with ranks that are small shell scripts: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hrdc_hpc.cluster.ends import read_ends
from hrdc_hpc.cluster.jobs import Job
from hrdc_hpc.cluster.local import after_setup, visible_gpus

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a controller: the ranks' shell script, which sees $RANK, and further environment."""
    logs = tmp_path / "it's a run" / "logs"
    logs.mkdir(parents=True)
    started: list[subprocess.Popen[bytes]] = []

    def run(script: str, ranks: int = 2, **environ: str) -> subprocess.Popen[bytes]:
        (tmp_path / "rank.sh").write_text(f"RANK=$SUBMITIT_LOCAL_GLOBALID\n{script}\n")
        settings = {
            "SUBMITIT_LOCAL_COMMAND": f"bash {tmp_path / 'rank.sh'}", "SUBMITIT_LOCAL_NTASKS": str(ranks),
            "SUBMITIT_LOCAL_TIMEOUT_S": "60", "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "30", "SUBMITIT_STDERR_TO_STDOUT": "1",
            "SUBMITIT_LOCAL_WITH_SHELL": "", "SUBMITIT_EXECUTOR": "local",
        }  # fmt: skip
        command = [sys.executable, "-m", "hrdc_hpc.cluster.local", str(logs)]
        started.append(subprocess.Popen(command, env=os.environ | settings | environ, start_new_session=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def outputs(tmp_path: Path, process: subprocess.Popen[bytes], ranks: int = 2) -> list[str]:
    return [(tmp_path / "it's a run" / "logs" / f"{process.pid}_{rank}_log.out").read_text() for rank in range(ranks)]


def wait_for_output(tmp_path: Path, process: subprocess.Popen[bytes], text: str) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            if all(text in output for output in outputs(tmp_path, process)):
                return
        except FileNotFoundError:
            pass
        time.sleep(0.05)
    pytest.fail(f"no {text!r} from every rank")


def test_ranks_that_finish(start: Start, tmp_path: Path) -> None:
    process = start("echo rank $RANK of $SUBMITIT_LOCAL_NTASKS; echo err >&2")
    assert process.wait(20) == 0
    assert outputs(tmp_path, process) == ["rank 0 of 2\nerr\n", "rank 1 of 2\nerr\n"]


def test_a_failing_rank_ends_its_hanging_peer_and_gives_its_code(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    process = start("[ $RANK = 1 ] && exit 78; exec sleep 50")
    assert process.wait(30) == 78
    assert time.monotonic() - begin < 20


def test_a_killed_rank_is_named(start: Start, tmp_path: Path) -> None:
    process = start("[ $RANK = 1 ] && kill -9 $$; sleep 0.2; exit 1")
    assert process.wait(20) == 128 + signal.SIGKILL
    (end,) = read_ends(tmp_path / "it's a run", Job("local", str(process.pid)))
    assert (end["rank"], end["code"], end["reason"]) == (1, -9, "killed by SIGKILL")


@pytest.mark.parametrize("name", ["TERM", "USR1", "USR2"])
def test_signals_reach_every_rank_and_do_not_kill_the_controller(start: Start, tmp_path: Path, name: str) -> None:
    process = start(f"trap 'echo got {name}; exit 0' {name}; echo ready; while true; do sleep 0.05; done")
    wait_for_output(tmp_path, process, "ready")
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.wait(20) == 0
    assert outputs(tmp_path, process) == [f"ready\ngot {name}\n"] * 2


def test_the_time_limit_is_announced_and_then_kept(start: Start, tmp_path: Path) -> None:
    limits = {"SUBMITIT_LOCAL_TIMEOUT_S": "2", "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "1"}
    process = start("trap 'echo warned' USR2; while true; do sleep 0.05; done", **limits)
    assert process.wait(20) == 1
    assert outputs(tmp_path, process) == ["warned\n"] * 2
    (end,) = read_ends(tmp_path / "it's a run", Job("local", str(process.pid)))
    assert "time limit" in end["reason"]


def test_setup_lines_run_first_and_keep_the_process_id() -> None:
    command = after_setup(["export A='it is'", "# a comment"], ["bash", "-c", "echo $A $$"])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate()[0] == f"it is {process.pid}\n"
    assert after_setup([], ["x"]) == ["x"]


def test_gpus_of_the_shell_are_respected() -> None:
    assert visible_gpus(2, {}) == "0,1"
    assert visible_gpus(1, {"CUDA_VISIBLE_DEVICES": "GPU-ab,GPU-cd"}) == "GPU-ab"
    assert visible_gpus(0, {"CUDA_VISIBLE_DEVICES": "3"}) == ""
    with pytest.raises(ValueError, match=r"gpus_per_node: 2, but CUDA_VISIBLE_DEVICES='3' allows 1"):
        visible_gpus(2, {"CUDA_VISIBLE_DEVICES": "3"})
