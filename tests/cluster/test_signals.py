"""Real signals to real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hrdc_hpc.cluster import signals
from hrdc_hpc.cluster.signals import SignalStop

PRELUDE = """
import os, signal, subprocess, sys, time
from hrdc_hpc.cluster.signals import SignalStop, shielded

def told(text):
    print(text, flush=True)

stop = SignalStop()
"""


@contextmanager
def child(script: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has printed 'ready'."""
    code = PRELUDE + textwrap.dedent(script)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_signals_only_set_a_flag_and_the_first_one_is_the_reason() -> None:
    with child("""
        import submitit.core.job_environment as je
        from submitit.local.local import LocalJobEnvironment
        LocalJobEnvironment()._handle_signals(None, None)  # submitit's, as in its own process_job: ours replace them
        stop.install()
        assert stop.reason() is None and stop.received() == {}
        told("ready")
        sys.stdin.readline()
        names = list(stop.received())
        told(f"{stop.reason()} {names} {all(abs(time.time() - at) < 60 for at in stop.received().values())}")
    """) as process:
        for number in (signal.SIGCONT, signal.SIGUSR2, signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            process.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.05)  # still there; and signals of one kind are not merged
        output, _ = process.communicate("go\n", timeout=20)
        assert output == "SIGUSR2 ['SIGUSR2', 'SIGTERM', 'SIGUSR1'] True\n"
        assert process.returncode == 0


def test_a_signal_interrupts_no_sleeping_call() -> None:
    with child("""
        stop.install()
        told("ready")
        begin = time.monotonic()
        time.sleep(0.5)
        told(f"{stop.reason()} {time.monotonic() - begin >= 0.5}")
    """) as process:
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20)[0] == "SIGTERM True\n"


def test_forked_children_ignore_the_signals_and_their_parent_still_notes_them() -> None:
    with child("""
        stop.install()
        child = os.fork()
        if child == 0:
            told("ready")
            time.sleep(1.0)
            os._exit(7 if stop.reason() is None else 8)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            time.sleep(0.1)
            os.kill(child, number)
        os.kill(os.getpid(), signal.SIGUSR1)
        told(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])} {stop.reason()}")
    """) as process:
        assert process.communicate(timeout=20)[0] == "7 SIGUSR1\n"


def test_a_shielded_program_outlives_the_signal_that_its_parent_gets() -> None:
    with child("""
        stop.install()
        with shielded():
            script = "import time; print('ready', flush=True); time.sleep(0.5)"
            program = subprocess.Popen([sys.executable, "-c", script])
            os.kill(os.getpid(), signal.SIGUSR2)
            during = stop.reason()
            time.sleep(0.2)
            program.send_signal(signal.SIGUSR2)
            code = program.wait()
        told(f"{during} {code} {stop.reason()}")
        unshielded = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"])
        time.sleep(0.2)
        unshielded.send_signal(signal.SIGUSR2)
        told(f"{unshielded.wait()}")  # what shielding is for
    """) as process:
        assert process.communicate(timeout=20)[0] == f"None 0 SIGUSR2\n{-signal.SIGUSR2}\n"


def test_a_rank_whose_parent_is_gone_already_is_told_to_stop() -> None:
    code = (
        "import os; from hrdc_hpc.cluster.signals import SignalStop, stop_when_parent_dies as check;"
        "stop = SignalStop(); stop.install(); check(os.getppid()); told = [stop.reason()];"
        "check(os.getpid()); print(*told, stop.reason())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None SIGTERM\n"


def test_switch_files_are_heard_by_the_rank_that_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_LOOK_EVERY_S", 0.0)
    stop, other = SignalStop(), SignalStop()
    stop.watch(tmp_path, 1e9)
    (tmp_path / "save").touch()
    assert other.save_asked() is False
    assert other.end_time() is None
    assert [stop.save_asked(), stop.save_asked()] == [True, False], "once"
    assert not (tmp_path / "save").exists()
    assert stop.reason() is None
    assert stop.end_time() == 1e9
    (tmp_path / "stop").touch()
    assert stop.reason() == "stop file"
    assert other.reason() is None
