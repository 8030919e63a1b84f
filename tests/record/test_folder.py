from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hrdc_hpc.record.files import write_json_durably, write_text_durably
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import metrics_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_created_folder_is_new_then_started_then_finished(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs" / "a run", config_text="lr: 0.1\n", manifest={"host": "n1"})
    assert run.config.read_text() == "lr: 0.1\n"
    assert json.loads(run.manifest.read_text()) == {"host": "n1"}
    assert names(run.path.parent) == ["a run"]
    assert (run.state(), run.summary()) == ("new", None)
    metrics_file(run, 0).touch()
    assert run.state() == "started"
    run.write_summary({"step": 3})
    assert (run.state(), run.summary()) == ("finished", {"step": 3})
    assert run.lease == run.path / "lease"
    assert names(run.report) == ["summary.json"]


@pytest.mark.parametrize("what", ["folder", "empty folder", "file", "dangling link"])
def test_nothing_that_is_there_is_replaced(what: str, tmp_path: Path) -> None:
    path = tmp_path / "taken"
    if what == "file":
        path.write_text("mine")
    elif what == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
        if what == "folder":
            (path / "mine").touch()
    with pytest.raises(FileExistsError, match="already there; give the new run another name"):
        RunFolder.create(path, config_text="", manifest={})
    assert names(tmp_path) == ["taken"]
    assert what != "file" or path.read_text() == "mine"


def test_one_of_two_creators_wins(tmp_path: Path) -> None:
    for round_number in range(10):
        path, ready, won = tmp_path / str(round_number), threading.Barrier(4), []

        def create(number: int, path=path, ready=ready, won=won) -> None:
            ready.wait()
            try:
                RunFolder.create(path, config_text=str(number), manifest={})
            except FileExistsError:
                return
            won.append(number)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert RunFolder(path).config.read_text() == str(won[0])
    assert len(names(tmp_path)) == 10


def test_failed_creation_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        RunFolder.create(tmp_path / "run", config_text="", manifest={"loss": float("nan")})
    assert names(tmp_path) == []


def test_failed_write_keeps_the_old_text(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json_durably(file, {"a": [1, None, "ü"]})
    assert json.loads(file.read_text()) == {"a": [1, None, "ü"]}
    with pytest.raises(UnicodeEncodeError):
        write_text_durably(file, "\ud800")
    assert json.loads(file.read_text()) == {"a": [1, None, "ü"]}
    assert names(tmp_path) == ["a.json"]


_WRITER = """
import sys
from pathlib import Path
from hrdc_hpc.record.files import write_text_durably
from hrdc_hpc.record.folder import RunFolder
parent, number = Path(sys.argv[1]), 0
while True:
    number += 1
    RunFolder.create(parent / f"run-{number}", config_text=f"{number}\\n" * 20000, manifest={"number": number})
    write_text_durably(parent / "text", f"{number}\\n" * 20000)
"""


def test_killed_writer_leaves_whole_files_and_folders(tmp_path: Path) -> None:
    for kill in range(6):
        parent = tmp_path / str(kill)
        parent.mkdir()
        with subprocess.Popen([sys.executable, "-c", _WRITER, str(parent)]) as writer:
            while not (parent / "run-1").exists():
                assert writer.poll() is None
                time.sleep(0.001)
            time.sleep(0.008 * kill)
            writer.send_signal(signal.SIGKILL)
        for path in parent.glob("run-*"):
            number = json.loads((path / "manifest.json").read_text())["number"]
            assert (path / "config.yaml").read_text() == f"{number}\n" * 20000
        if (parent / "text").exists():
            text = (parent / "text").read_text()
            assert text == text[: text.index("\n") + 1] * 20000
