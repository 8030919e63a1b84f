"""Cluster profiles: where they are found, and who wins: command line, run, profile, defaults."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from hrdc_hpc.config.cluster import Cluster
from hrdc_hpc.config.find import shipped_folder
from hrdc_hpc.config.load import ConfigError, load, loads, to_yaml
from hrdc_hpc.config.profiles import find_profile, shipped_profiles

RUN = """name: small
data: {dataset: digits_lt}
model: {backbone: tiny}
method: ce
optim: {epochs: 2, global_batch: 32}
"""
PROFILE = """partition: long
account: mine
nodes: 2-4
environment: {A: 1, B: 2}
modules: [gcc, cuda]
container: {kind: apptainer, image: /x.sif}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory, with a run's config that names the user's own profile `here`."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    own = tmp_path / "config" / "hrdc_hpc" / "clusters"
    own.mkdir(parents=True)
    (own / "here.yaml").write_text(PROFILE)
    work = tmp_path / "work"
    work.mkdir()
    (work / "run.yaml").write_text(f"{RUN}cluster:\n  profile: here\n  account: yours\n  modules: [intel]\n")
    monkeypatch.chdir(work)
    return work


def problems(*overrides: str, cfg: str = "run.yaml") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(cfg, overrides)
    return caught.value.problems


def test_command_line_then_run_then_profile_then_default(place: Path) -> None:
    cluster = load("run.yaml", ["cluster.partition=short"]).cluster
    assert cluster.partition == "short"  # 1. the command line
    assert cluster.account == "yours"  # 2. the run's config
    assert cluster.nodes == "2-4"  # 3. the profile
    assert cluster.time_min == 60  # 4. the default
    assert cluster.modules == ("intel",), "a list is taken whole"


def test_mappings_are_joined_key_by_key(place: Path) -> None:
    cluster = load("run.yaml", ["cluster.environment.B=3", "cluster.environment.C=4"]).cluster
    assert cluster.environment == {"A": 1, "B": 3, "C": 4}
    container = load("run.yaml", ["cluster.container.image=/y.sif"]).cluster.container
    assert container is not None
    assert (container.kind, container.image) == ("apptainer", "/y.sif")
    assert load("run.yaml", ["cluster.container=null"]).cluster.container is None


def test_the_command_line_names_another_profile_or_none(place: Path) -> None:
    (place / "other.yaml").write_text("partition: elsewhere\n")
    other = load("run.yaml", ["cluster.profile=./other"]).cluster
    assert (other.partition, other.environment) == ("elsewhere", {})
    assert other.profile == str(place / "other.yaml"), "found again from anywhere"
    assert load("run.yaml", ["cluster.profile=null"]).cluster.partition is None


def test_what_the_run_folder_holds_is_complete(place: Path) -> None:
    config = load("run.yaml")
    text = to_yaml(config)
    (place / "frozen.yaml").write_text(text)
    own = find_profile("here")
    own.unlink()  # neither an attempt nor a launch of it needs the profile
    assert loads(text) == config
    assert load("frozen.yaml") == config
    assert config.cluster.profile == "here"
    (problem,) = problems("cluster.profile=apptainer", cfg="frozen.yaml")
    assert "this config is that of a run folder, complete" in problem


def test_problems_name_file_and_line_of_the_profile(place: Path) -> None:
    own = find_profile("here")
    own.write_text("partition: gpu\npartion: gpu\nnodes: two\nenvironment:\n  A-B: 1\n")
    assert problems("cluster.nodse=3") == [
        f"{own}:2: cluster.partion: unknown key. Did you mean 'partition'?",
        f"{own}:3: cluster.nodes: must be a whole number above 0 or a range MIN-MAX such as 2-4; got 'two'",
        "override 'cluster.nodse=3': cluster.nodse: unknown key. Did you mean 'nodes'?",
    ]
    own.write_text("partition: gpu\nenvironment:\n  A-B: 1\n")
    assert problems() == [f"{own}:2: cluster.environment: must have names of variables as keys; got 'A-B'"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cluster: {nodes: 1}", "1: cluster: does not belong into a profile: write the keys without 'cluster:' above"),
        ("nodes: 1\nprofile: x", "2: profile: does not belong into a profile: one profile does not name another"),
        ("- partition", "1: must be a mapping of keys to values, such as 'partition: gpu'"),
        ("nodes: 1\nnodes: 2", "2: nodes: duplicate key, first on line 1; keep one"),
        ("a: b: c", "1: YAML syntax"),
        ("venv: venvs/x", "1: cluster.venv: must be an absolute path, such as $HOME/x; got 'venvs/x'"),
        ("venv: $(whoami)", "1: cluster.venv: must be one line in which only $NAME"),
        ("python: python`id`", "1: cluster.python: must be one line in which only $NAME"),
        ("environment: {A: 'x\"y'}", "1: cluster.environment: must be one line in which only $NAME"),
        ("modules: [cuda; rm]", "1: cluster.modules: must be names of modules, such as cuda/13; got 'cuda; rm'"),
        ("srun: [-n 3]", "1: cluster.srun: write long options, such as --network=...; got '-n 3'"),
        ("nccl: ib", "1: cluster.nccl: must be one of none, infiniband, ethernet, efa, slingshot; got 'ib'"),
        ("container: {kind: docker}", "1: cluster.container.kind: must be one of apptainer, pyxis; got 'docker'"),
        ("container: {kind: pyxis}", "1: cluster.container.image: missing; must be text"),
        ("container: {kind: pyxis, image: x, binds: [x]}", "1: cluster.container.binds: must be an absolute path"),
        ("container: {kind: pyxis, image: x}\nvenv: /v", "2: cluster.venv: does not go with container"),
    ],
)  # fmt: skip
def test_a_wrong_profile(place: Path, text: str, problem: str) -> None:
    own = find_profile("here")
    own.write_text(f"{text}\n")
    (place / "run.yaml").write_text(f"{RUN}cluster: {{profile: here}}\n")
    assert any(found.startswith(f"{own}:{problem}") for found in problems()), problems()


def test_where_profiles_are_looked_for(place: Path) -> None:
    for folder in (place, find_profile("here").parent):
        (folder / "apptainer.yaml").write_text("partition: x\n")
    assert find_profile("apptainer.yaml") == Path("apptainer.yaml")  # 1. a path
    assert find_profile("apptainer") == find_profile("here").parent / "apptainer.yaml"  # 2. the user's own
    find_profile("apptainer").unlink()
    assert find_profile("apptainer").parent.parent.name == "configs"  # 3. the shipped ones
    (problem,) = problems("cluster.profile=aptainer")
    assert problem.startswith("override 'cluster.profile=aptainer': cluster.profile: no such cluster profile in ")
    assert problem.endswith(f"Did you mean 'apptainer'? Known: {', '.join(sorted(['here', *shipped_profiles()]))}")


@pytest.mark.parametrize("name", shipped_profiles())
def test_every_shipped_profile_is_whole(place: Path, name: str) -> None:
    (place / "run.yaml").write_text(RUN)
    assert load("run.yaml", [f"cluster.profile={name}"]).cluster.profile == name


def test_the_table_of_keys_is_complete() -> None:
    text = (shipped_folder() / "clusters" / "README.md").read_text()
    rows = [line for line in text.partition("## Keys")[2].splitlines() if line.startswith("| `")]
    keys = [key for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(keys) == sorted(field.name for field in dataclasses.fields(Cluster))
    for name in shipped_profiles():
        assert f"[{name}.yaml]({name}.yaml)" in text
