"""The command line, without a job: dry-run, errors and their exit codes, what is found in the run folder."""

from __future__ import annotations

import dataclasses
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hrdc_hpc
from hrdc_hpc.cluster.commandline import CLUSTER_FLAGS
from hrdc_hpc.config.cluster import Cluster
from hrdc_hpc.config.load import load, to_yaml
from hrdc_hpc.config.paths import absolute
from hrdc_hpc.config.profiles import shipped_profiles
from hrdc_hpc.launch import main

from launching import contents, launch

GOLDEN = Path(__file__).parents[1] / "golden"


# the text

EVERYTHING = [
    "--partition", "gpu", "--nodes", "4", "--gpus-per-node", "8", "--cpus-per-rank", "12", "--mem-gb", "480",
    "--time", "1-00:30", "--signal-delay", "120", "--account", "0123", "--qos", "high", "--constraint", "a100|h100",
    "--array-parallelism", "3", "--sbatch", "exclusive", "--sbatch", "mail-type=END,FAIL", "--sbatch", "no_requeue",
    "--sbatch", "comment=it's mine",
    "--setup", "module load cuda/13", "--setup", "export NCCL_DEBUG=WARN",
]  # fmt: skip


GOLDEN_LAUNCHES = {
    "least": [],
    "cpu_two_nodes": ["--nodes", "2", "--time", "30"],
    "everything": EVERYTHING,
    "malleable": ["--nodes", "2-4", "--gpus-per-node", "4", "--cpus-per-rank", "8", "--signal-delay", "0"],
}


PROFILES = {
    "profile_generic": ["--profile", "generic"],
    "profile_ethernet": ["--profile", "ethernet", "--nodes", "2", "cluster.network_interface=eth0"],
    "profile_dev_cluster": ["--profile", "dev_cluster", "--nodes", "1-2"],
    "profile_apptainer": ["--profile", "apptainer"],
    "profile_pyxis": ["--profile", "pyxis"],
    "profile_h200_ndr": ["--profile", "h200_ndr", "--nodes", "2"],
    "profile_a100_hdr": ["--profile", "a100_hdr", "--nodes", "2"],
    "profile_a100_25gbe": ["--profile", "a100_25gbe", "--nodes", "2"],
    "venv": ["cluster={modules: [gcc/13, cuda/13], venv: $HOME/venvs/hrdc, cpu_bind: cores, gpu_bind: closest}"],
    "python": ["cluster={python: /opt/python 3/bin/python, environment: {A: 1, PATH: '/x:$PATH'}}"],
    "apptainer_with_everything": ["--profile", "apptainer", "--nodes", "2-4", *(EVERY_NODE := [
        "cluster.nccl=slingshot", "cluster.network_interface=hsn0", "cluster.scratch=/local/$USER/${SLURM_JOB_ID}",
        "cluster.compile_cache=${SCRATCH:-/tmp}/kernels", "cluster.environment.HF_HOME=/hf", "cluster.modules=[cuda]",
        "cluster.container.binds=[/proj, '/weights:/w:ro']", "cluster.container.image=/images/x.sif",
        "cluster.python=/opt/conda/bin/python", "cluster.srun=[--mem-bind=local]", "cluster.setup=[ulimit -n 65536]",
    ])],
    "pyxis_with_everything": ["--profile", "pyxis", "--nodes", "2-4", *EVERY_NODE],
}  # fmt: skip
GOLDEN_LAUNCHES |= PROFILES


def test_every_shipped_profile_has_a_golden_text() -> None:
    assert {f"profile_{name}" for name in shipped_profiles()} <= PROFILES.keys()


@pytest.mark.parametrize(("name", "arguments"), GOLDEN_LAUNCHES.items())
def test_the_sbatch_text(place: Path, capsys: pytest.CaptureFixture[str], name: str, arguments: list[str]) -> None:
    (place / "data" / "digits_lt").mkdir(parents=True)
    assert launch("--dry-run", *arguments) == 0
    text = capsys.readouterr().out.partition("\n# the run's config.yaml")[0]
    here = str(place).replace("'", "'\"'\"'")
    text = text.replace(here, "HERE").replace(sys.executable, "PYTHON")
    assert text == (GOLDEN / f"{name}.sbatch").read_text()


@pytest.mark.parametrize(
    ("preset", "lines"),
    [
        ("none", []),
        ("infiniband", ["export NCCL_NET=IB"]),
        ("ethernet", ["export NCCL_NET=Socket", "export NCCL_IB_DISABLE=1"]),
        ("efa", ["export FI_PROVIDER=efa"]),
        ("slingshot", ["export FI_MR_CACHE_MONITOR=userfaultfd", "export NCCL_SOCKET_IFNAME=hsn"]),
    ],
)
def test_presets_of_the_network(place: Path, capsys: pytest.CaptureFixture[str], preset: str, lines: list[str]) -> None:
    assert launch("--dry-run", f"cluster.nccl={preset}") == 0
    text = capsys.readouterr().out.partition("\n# the run's config.yaml")[0]
    told = [line for line in text.splitlines() if line.startswith(("export NCCL", "export FI_"))]
    assert set(lines) <= set(told)
    assert bool(told) == bool(lines)


def test_what_is_submitted_is_what_dry_run_prints(place: Path, slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--partition", "gpu", "--sbatch", "mail-type=END"]
    assert launch("--dry-run", *arguments) == 0
    printed = capsys.readouterr().out
    assert launch(*arguments) == 0
    run = place / "runs" / "small"
    given = (slurm / "given.sbatch").read_text()
    assert given
    assert printed.startswith(given)
    config = to_yaml(absolute(load("small.yaml", ['cluster.partition="gpu"', 'cluster.sbatch.mail-type="END"'])))
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


def test_a_local_launch_says_what_of_the_cluster_it_leaves_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["cluster.environment.A=1", "cluster.cpu_bind=cores"]
    assert launch("--dry-run", "--cluster", "local", "--profile", "apptainer", "--gpus-per-node", "0", *options) == 0
    captured = capsys.readouterr()
    assert "ranks as they are here, without cluster.container, cluster.environment, cluster.cpu_bind" in captured.err
    assert "apptainer exec" not in captured.out


def test_dry_run_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(place)
    assert launch("--dry-run") == 0
    assert launch("--dry-run", "--cluster", "local") == 0
    assert contents(place) == before
    assert sorted(path.name for path in place.iterdir()) == ["small.yaml"]
    assert "no sbatch on the PATH" in capsys.readouterr().err  # said, but no reason to stop


def test_every_cluster_field_of_a_run_has_a_flag(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_a_cluster = {
        "srun", "cpu_bind", "gpu_bind", "modules", "venv", "python", "container", "environment", "nccl",
        "network_interface", "scratch", "compile_cache", "requeue", "network", "device",
    }  # fmt: skip
    flags = {*CLUSTER_FLAGS, "sbatch", "setup"}
    assert flags | of_a_cluster == {field.name for field in dataclasses.fields(Cluster)}
    assert not flags & of_a_cluster
    assert launch("--dry-run", *EVERYTHING, "--ranks-per-node", "5", "--name", "007", "--out-dir", "else where") == 0
    text = capsys.readouterr().out.partition("config.yaml, in ")[2].partition("\n")[2]
    (place / "back.yaml").write_text(text)
    config = load("back.yaml")
    assert config.name == "007"
    assert config.out_dir == place / "else where"
    assert config.cluster == Cluster(
        partition="gpu", nodes=4, gpus_per_node=8, ranks_per_node=5, cpus_per_rank=12, mem_gb=480, time_min=1470,
        signal_delay_s=120, account="0123", qos="high", constraint="a100|h100", array_parallelism=3,
        sbatch={"exclusive": True, "mail-type": "END,FAIL", "no_requeue": True, "comment": "it's mine"},
        setup=("module load cuda/13", "export NCCL_DEBUG=WARN"),
    )  # fmt: skip


def test_sbatch_options_that_are_true_or_false(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["requeue=false", "exclusive=true", "hold=no"]
    assert launch("--dry-run", *(word for option in options for word in ("--sbatch", option))) == 0
    text = capsys.readouterr().out.partition("\n# the run's config.yaml")[0]
    assert "#SBATCH --requeue" not in text
    assert "#SBATCH --exclusive\n" in text
    assert "#SBATCH --hold=no\n" in text  # text, for sbatch to judge


def test_setup_lines_may_have_several_lines(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("--dry-run", "--setup", "if true; then\n\texport A=1\nfi") == 0
    assert "if true; then\n\texport A=1\nfi\n" in capsys.readouterr().out


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
        (["--nodes", "4-2"], "cluster.nodes: must go from fewer to more, such as 2-4; got 4-2"),
        (["cluster.nodes=2 to 4"], "must be a whole number above 0 or a range MIN-MAX such as 2-4; got '2 to 4'"),
        (["--cluster", "local", "--nodes", "1-2"], "cluster.nodes: 1-2, but --cluster local is this machine alone"),
        (["--nodes", "30-33"], "cluster.nodes 30-33, 1 rank on each of 33: optim.global_batch: 32 images over 33"),
        (["--nodes", "1-3", "model.batch_norm=ghost", "model.ghost_size=8"], "1 rank on each of 3: model.ghost_size"),
        (["--profile", "nowhere"], "cluster.profile: no such cluster profile in"),
        (["cluster.srun=[--ntasks=3]"], "cluster.srun: --ntasks=3: cannot be set (--ntasks); the launcher"),
        (["cluster.srun=[--out=x]"], "cluster.srun: --out=x: cannot be set (--output)"),
        (
            ["--out-dir", "a,b", "--profile", "apptainer", "data.dataset.root=/usr"],
            "cannot be bound: its path holds ','",
        ),
        (["--name", "a/b"], "name: "),
        (["--out-dir", "a:b"], "must not contain ':'"),
        (["--out-dir", "100%"], "must not contain '%'"),
        (["--sbatch", "time=5"], "cluster.sbatch.time: set cluster.time_min instead"),
        (["--sbatch", "output=x"], "cluster.sbatch.output: cannot be set"),
        (["--sbatch", "a b=x"], "cannot be set"),
        (["--sbatch", "comment=one\ntwo"], "must be one line"),
        (["--sbatch", "N=3"], "cluster.sbatch.N: write the option's long name"),
        (["--sbatch", "part=gpu"], "cluster.sbatch.part: sbatch would take it for partition; set cluster.partition"),
        (["--sbatch", "out=x"], "sbatch would take it for output; cannot be set"),
        (["--sbatch", "requ=false"], "sbatch would take it for requeue; write it in full"),
        (["--account", "me\n#SBATCH --nodes=99"], "cluster.account: must be one line of printable characters"),
        (["--partition", "a\rb"], "cluster.partition: must be one line"),
        (["--qos", "a\x1b"], "cluster.qos: must be one line"),
        (["--constraint", "a\nb"], "cluster.constraint: must be one line"),
        (["--setup", "a\x00"], "cluster.setup"),
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
        (["--nodes", "two"], "must be a whole number above 0 or a range MIN-MAX such as 2-4; got 'two'"),
        (["--nodes", "2-"], "a range MIN-MAX such as 2-4; got '2-'"),
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
    error = capsys.readouterr().err
    assert message in error
    assert error.endswith("(see --help)\n")
    assert error.count("\n") == 1


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


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for bytecode, which the first start fills."""
    return tmp_path_factory.mktemp("compiled")


@pytest.mark.parametrize("arguments", [["--dry-run"], ["--dry-run", "--cluster", "local"], ["optim.lrr=1"]])
def test_it_answers_in_a_second_without_torch(place: Path, arguments: list[str], compiled: Path) -> None:
    code = (
        "import sys; from hrdc_hpc.launch import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'torchvision', 'nvidia.dali', 'tensorboard', 'sklearn'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    # as a user has it from the second start on: compiled, whatever this machine's shell says of bytecode
    environ = os.environ | {
        "PYTHONPATH": str(Path(hrdc_hpc.__file__).parents[1]),
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(compiled),
    }
    command = [sys.executable, "-c", code, "--cfg", "small.yaml", *arguments]
    subprocess.run(command, capture_output=True, check=False, env=environ)
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
