"""The command line, without a job: dry-run, errors and their exit codes, what is found in the run folder."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hrdc_hpc
from hrdc_hpc.cluster.jobs import Job, note_job
from hrdc_hpc.config.load import load, to_yaml
from hrdc_hpc.config.schema import Cluster
from hrdc_hpc.launch import CLUSTER_FLAGS, main
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.lease import Lease

CONFIG = """
name: small
data: {dataset: digits_lt, image_size: 24}
model: {backbone: tiny}
method: hrdc
optim: {epochs: 2, global_batch: 32}
"""
SBATCH = """#!/bin/bash
cp "$1" "$FAKE/given.sbatch"; echo "$@" > "$FAKE/arguments"; env > "$FAKE/environ"
[ -e "$FAKE/refusal" ] && { cat "$FAKE/refusal" >&2; exit 1; }
echo "Submitted batch job 4242"
"""
SQUEUE = """#!/bin/bash
cat "$FAKE/queue" 2>/dev/null || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
"""
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with a config, whose name is hostile, on a machine without SLURM."""
    folder = tmp_path / 'it\'s "a" $HOME folder'
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", "/nowhere")
    (folder / "small.yaml").write_text(CONFIG)
    return folder


@pytest.fixture
def slurm(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a make-believe SLURM that is on the PATH: what sbatch was given, what squeue is to say."""
    folder = place.parent / "slurm"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE", str(folder))
    return folder


def launch(*arguments: str) -> int:
    return main(["--cfg", "small.yaml", *arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# the text

EVERYTHING = [
    "--partition", "gpu", "--nodes", "4", "--gpus-per-node", "8", "--cpus-per-rank", "12", "--mem-gb", "480",
    "--time", "1-00:30", "--signal-delay", "120", "--account", "0123", "--qos", "high", "--constraint", "a100|h100",
    "--array-parallelism", "3", "--sbatch", "exclusive", "--sbatch", "mail-type=END,FAIL", "--sbatch", "no_requeue",
    "--sbatch", "comment=it's mine",
    "--setup", "module load cuda/13", "--setup", "export NCCL_DEBUG=WARN",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("least", []), ("cpu_two_nodes", ["--nodes", "2", "--time", "30"]), ("everything", EVERYTHING)],
)
def test_the_sbatch_text(place: Path, capsys: pytest.CaptureFixture[str], name: str, arguments: list[str]) -> None:
    assert launch("--dry-run", *arguments) == 0
    text = capsys.readouterr().out.partition("\n# the run's config.yaml")[0]
    here = str(place).replace("'", "'\"'\"'")
    text = text.replace(here, "HERE").replace(sys.executable, "PYTHON")
    assert text == (GOLDEN / f"{name}.sbatch").read_text()


def test_what_is_submitted_is_what_dry_run_prints(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--partition", "gpu", "--sbatch", "mail-type=END"]
    assert launch("--dry-run", *arguments) == 0
    printed = capsys.readouterr().out
    assert launch(*arguments) == 0
    run = place / "runs" / "small"
    given = (slurm / "given.sbatch").read_text()
    assert given
    assert printed.startswith(given)
    config = to_yaml(load("small.yaml", ['cluster.partition="gpu"', 'cluster.sbatch.mail-type="END"']))
    assert (run / "config.yaml").read_text() == config
    assert printed.endswith(f"# the run's config.yaml, in {run}\n{config}\n")
    out = capsys.readouterr().out
    assert "job 4242" in out
    assert str(run) in out
    assert "--follow" in out
    assert (run / "logs" / "4242_submitted.pkl").is_file()


def test_a_job_submitted_from_inside_a_job_does_not_inherit_its_shape(
    place: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "7", "SLURM_CONF": "/etc/here.conf", "SBATCH_ACCOUNT": "mine"}
    for name, value in inside.items():
        monkeypatch.setenv(name, value)
    assert launch() == 0
    environ = (slurm / "environ").read_text()
    assert "SLURM_NTASKS" not in environ
    assert "SLURM_CONF=/etc/here.conf" in environ
    assert "SBATCH_ACCOUNT=mine" in environ
    assert os.environ["SLURM_NTASKS"] == "7"


def test_dry_run_of_a_local_launch(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("--dry-run", "--cluster", "local", "--ranks-per-node", "2", "--setup", "export A=1") == 0
    out = capsys.readouterr().out
    assert "2 ranks on this machine, at most 60 minutes" in out
    assert "PYTHONSAFEPATH=1" in out
    assert "#SBATCH" not in out


def test_dry_run_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(place)
    assert launch("--dry-run") == 0
    assert launch("--dry-run", "--cluster", "local") == 0
    assert contents(place) == before
    assert sorted(path.name for path in place.iterdir()) == ["small.yaml"]
    assert "no sbatch on the PATH" in capsys.readouterr().err  # said, but no reason to stop


def test_every_cluster_field_has_a_flag(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {*CLUSTER_FLAGS, "sbatch", "setup"} == {field.name for field in dataclasses.fields(Cluster)}
    assert launch("--dry-run", *EVERYTHING, "--ranks-per-node", "5", "--name", "007", "--out-dir", "else where") == 0
    text = capsys.readouterr().out.partition("config.yaml, in ")[2].partition("\n")[2]
    (place / "back.yaml").write_text(text)
    config = load("back.yaml")
    assert config.name == "007"
    assert config.out_dir == Path("else where")
    assert config.cluster == Cluster(
        partition="gpu", nodes=4, gpus_per_node=8, ranks_per_node=5, cpus_per_rank=12, mem_gb=480, time_min=1470,
        signal_delay_s=120, account="0123", qos="high", constraint="a100|h100", array_parallelism=3,
        sbatch={"exclusive": True, "mail-type": "END,FAIL", "no_requeue": True, "comment": "it's mine"},
        setup=("module load cuda/13", "export NCCL_DEBUG=WARN"),
    )  # fmt: skip


def test_an_override_after_the_flags_wins(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("optim.lr=0.25", "--dry-run", "--nodes", "2", "cluster.nodes=3") == 0
    out = capsys.readouterr().out
    assert "#SBATCH --nodes=3\n" in out
    assert "  lr: 0.25\n" in out


# errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim.learning_rate=1"], "optim.learning_rate: unknown key"),
        (["--nodes", "0"], "cluster.nodes"),
        (["--name", "a/b"], "name: "),
        (["--out-dir", "a:b"], "must not contain ':'"),
        (["--out-dir", "100%"], "must not contain '%'"),
        (["--sbatch", "time=5"], "cluster.sbatch.time: set cluster.time_min instead"),
        (["--sbatch", "output=x"], "cluster.sbatch.output: cannot be set"),
        (["--sbatch", "a b=x"], "cannot be set"),
        (["--sbatch", "comment=one\ntwo"], "must be one line"),
        (["--cluster", "local", "--partition", "gpu"], "leave one out"),
        (["--cluster", "local", "--nodes", "2"], "cluster.nodes: 2, but --cluster local is this machine alone"),
        ([], "no sbatch on the PATH"),
        (["--partition", "gpu"], "--cluster local"),
        (["data.dataset={name: image_folder, root: nowhere}", "--cluster", "local"], "nowhere"),
    ],
)
def test_a_wrong_launch_says_why_and_leaves_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert launch(*arguments) == 78
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(path.name for path in place.iterdir()) == ["small.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "two"], "invalid int value: 'two'"),
        (["--time", "1 day"], "known: minutes, minutes:seconds"),
        (["--partitoin", "gpu"], "unrecognized arguments"),
        (["--cluster", "moon"], "invalid choice"),
    ],
)
def test_a_wrong_command_line(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as left:
        launch(*arguments)
    assert left.value.code == 78
    assert message in capsys.readouterr().err


def test_without_a_config(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--dry-run"])
    assert left.value.code == 78
    assert "--cfg is missing" in capsys.readouterr().err


def test_missing_data_stops_before_anything_is_queued(
    place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("--partition", "gpu", "data.dataset={name: image_folder, root: nowhere}") == 78
    assert "nowhere" in capsys.readouterr().err
    assert not (slurm / "arguments").exists()
    assert not (place / "runs").exists()


def test_a_refusal_of_sbatch_is_passed_on_and_leaves_no_run(
    place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (slurm / "refusal").write_text("sbatch: error: invalid partition specified: gpux\n")
    assert launch("--partition", "gpux") == 1
    assert "invalid partition specified: gpux" in capsys.readouterr().err
    assert not (place / "runs" / "small").exists()


@pytest.mark.parametrize("arguments", [["--dry-run"], ["--dry-run", "--cluster", "local"], ["optim.lrr=1"]])
def test_it_answers_in_a_second_without_torch(place: Path, arguments: list[str]) -> None:
    code = (
        "import sys; from hrdc_hpc.launch import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'torchvision', 'nvidia.dali', 'tensorboard', 'sklearn'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    environ = os.environ | {"PYTHONPATH": str(Path(hrdc_hpc.__file__).parents[1])}
    command = [sys.executable, "-c", code, "--cfg", "small.yaml", *arguments]
    wall, cpu = [], []
    for _ in range(3):
        begin, used = time.monotonic(), _cpu_of_children()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
        wall.append(time.monotonic() - begin)
        cpu.append(_cpu_of_children() - used)
        assert done.returncode == (78 if "optim.lrr=1" in arguments else 0), done.stderr
    # on a machine that others load too, the median tells of them: it is taken of the work, and the best of the wait
    assert statistics.median(cpu) < 1
    assert min(wall) < 1


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# what is found


@pytest.fixture
def started(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run whose job has begun, and has left the queue without finishing."""
    assert launch() == 0
    (slurm / "given.sbatch").unlink()
    capsys.readouterr()
    run = place / "runs" / "small"
    (run / "metrics" / "attempt-1.jsonl").touch()
    return run


def test_prepare_makes_a_run_and_submits_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("--prepare") == 0
    run = place / "runs" / "small"
    code = RunFolder(run).code
    assert (code / "hrdc_hpc" / "engine" / "place.py").is_file()
    assert not [path for path in code.rglob("*") if path.name == "__pycache__"]
    assert json.loads((run / "manifest.json").read_text())
    out = capsys.readouterr().out
    assert "srun" in out
    assert "train.py" in out or "hrdc_hpc.cluster.task" in out


def test_a_half_finished_run_goes_on_with_operational_changes(
    started: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = (started / "config.yaml").read_text()
    assert launch("--nodes", "2", "checkpoint.every_steps=7") == 0
    out = capsys.readouterr().out
    assert "goes on from its last checkpoint" in out
    assert "cluster.nodes: 1 -> 2" in out
    assert "checkpoint.every_steps: 500 -> 7" in out
    assert (started / "config-1.yaml").read_text() == old
    assert "every_steps: 7" in (started / "config.yaml").read_text()
    assert "#SBATCH --nodes=2\n" in (slurm / "given.sbatch").read_text()
    assert launch("--nodes", "3") == 0
    assert "every_steps: 7" in (started / "config-2.yaml").read_text()


def test_a_run_that_never_began_may_change_as_it_likes(
    started: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (started / "metrics" / "attempt-1.jsonl").unlink()
    assert launch("optim.lr=0.3") == 0
    assert "never ran" in capsys.readouterr().out
    assert "lr: 0.3" in (started / "config.yaml").read_text()


def test_an_unchanged_relaunch_keeps_the_config_file(started: Path, slurm: Path) -> None:
    assert launch() == 0
    assert (slurm / "given.sbatch").exists()
    assert not list(started.glob("config-*.yaml"))


def test_a_semantic_change_is_refused_and_nothing_is_touched(
    started: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(started)
    assert launch("optim.lr=0.3", "seed=4", "--nodes", "2") == 78
    error = capsys.readouterr().err
    assert "optim.lr: 0.1 -> 0.3" in error
    assert "seed: 0 -> 4" in error
    assert "cluster.nodes" not in error
    assert "--name" in error
    assert contents(started) == before
    assert not (slurm / "given.sbatch").exists()


@pytest.mark.parametrize("state", ["PENDING|Resources", "RUNNING|None", "COMPLETING|None"])
def test_a_run_whose_job_is_in_the_queue_is_refused(
    started: Path, slurm: Path, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    (slurm / "queue").write_text(f"{state}\n")
    assert launch() == 78
    error = capsys.readouterr().err
    assert "job 4242 of this run is" in error
    assert state.partition("|")[0] in error
    assert "--follow" in error
    assert not (slurm / "given.sbatch").exists()


def test_a_running_run_is_refused(started: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lease = Lease.acquire(RunFolder(started), {"job_id": "77"})
    try:
        assert launch() == 78
    finally:
        lease.release()
    error = capsys.readouterr().err
    assert "is running: process" in error
    assert "since" in error
    assert "77" in error
    assert not (slurm / "given.sbatch").exists()


SUMMARY = {
    "step": 8, "epoch": 2, "primary": "fused", "accuracy_ema": None,
    "accuracy": {"fused": {"overall": 0.5, "many": 0.75, "medium": 0.5, "few": 0.25}},
}  # fmt: skip


def test_a_finished_run_tells_its_result(started: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunFolder(started).write_summary(SUMMARY)
    before = contents(started)
    assert launch("--nodes", "2") == 0
    out = capsys.readouterr().out
    assert "is finished" in out
    assert "--name" in out
    assert re.search(r"fused \*.*50\.00.*75\.00.*50\.00.*25\.00", out)
    assert contents(started) == before
    assert launch("optim.lr=0.3") == 78  # its result is not that of these settings
    assert main(["--follow", str(started)]) == 0


def test_a_folder_that_is_no_run_is_left_alone(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "runs" / "small").mkdir(parents=True)
    assert launch() == 78
    assert "is not a run folder" in capsys.readouterr().err
    assert main(["--follow", str(place)]) == 78


def test_code_that_changed_since_the_first_launch_is_named(started: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = RunFolder(started).code / "hrdc_hpc" / "launch.py"
    file.write_text("# another\n")
    assert launch() == 0
    out = capsys.readouterr().out
    assert "differs from the present one in 1 files (hrdc_hpc/launch.py)" in out
    assert file.read_text() == "# another\n"


def test_a_launch_that_was_killed_before_its_snapshot_is_made_up_for(started: Path) -> None:
    code = RunFolder(started).code
    for path in sorted(code.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert launch() == 0
    assert (code / "hrdc_hpc" / "__init__.py").is_file()


def test_follow_without_a_job(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("--prepare") == 0
    assert main(["--follow", "runs/small"]) == 78
    assert "no job was submitted" in capsys.readouterr().err


def test_a_job_number_of_another_process_is_not_this_runs(started: Path) -> None:
    note_job(started, Job("local", str(os.getpid())))  # this process is there, but no controller
    assert launch() == 0
