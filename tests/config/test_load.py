"""What a right config is read as."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hrdc_hpc.config.load import ConfigError, loads, to_yaml
from hrdc_hpc.config.schema import Levels, Optim, RunConfig
from hrdc_hpc.config.types import Component

pytestmark = pytest.mark.usefixtures("components")


def value(run_yaml: str, key: str, *overrides: str) -> object:
    """Return the value at a dotted key of the run, component options by their names."""
    found: object = loads(run_yaml, overrides=overrides)
    for name in key.split("."):
        found = getattr(found.options if isinstance(found, Component) and name != "name" else found, name)
    return found


def test_defaults_and_components_are_resolved(run_yaml: str) -> None:
    run = loads(run_yaml)
    assert run.optim.lr == 0.1
    assert run.optim.schedule.name == "cosine"
    assert run.data.sampler.options is not None
    assert run.method.options.loss.name == "soft"
    assert run.method.options.loss.options.gamma == 0.1
    assert run.data.dataset.options.root == Path("data/toy")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1e3),
        (".5", 0.5),
        ("5.", 5.0),
        ("+2", 2.0),
        ("1_000.5", 1000.5),
        ("7", 7.0),
        ("2.5e+1", 25.0),
    ],
)
def test_numbers_as_people_write_them(run_yaml: str, text: str, number: float) -> None:
    read = value(run_yaml, "optim.lr", f"optim.lr={text}")
    assert read == number
    assert type(read) is float


@pytest.mark.parametrize(("text", "number"), [("7", 7), ("+7", 7), ("1_000", 1000), ("0", 0)])
def test_whole_numbers(run_yaml: str, text: str, number: int) -> None:
    assert value(run_yaml, "seed", f"seed={text}") == number


@pytest.mark.parametrize(
    ("text", "flag"),
    [("true", True), ("no", False), ("off", False), ("on", True), ("yes", True), ("False", False), ("NO", False)],
)
def test_boolean_words_in_a_boolean_field(run_yaml: str, text: str, flag: bool) -> None:
    assert value(run_yaml, "data.flip", f"data.flip={text}") is flag


@pytest.mark.parametrize("text", ["no", "on", "1e-3", "010", "2024-01-31", "12:30", "true", "7"])
def test_a_text_field_takes_what_is_written(run_yaml: str, text: str) -> None:
    assert value(run_yaml, "cluster.partition", f"cluster.partition={text}") == text
    assert value(run_yaml, "data.dataset.classes", f"data.dataset.classes=[{text}, 'off']") == (text, "off")


@pytest.mark.parametrize("name", ["no", "on", "1e-3", "010", "true", "7", "2024-01-31"])
def test_run_names_that_yaml_knows_as_something_else(run_yaml: str, name: str) -> None:
    run = loads(run_yaml.replace("first_run", name))
    assert run.name == name
    assert loads(to_yaml(run)) == run


def test_unions(run_yaml: str) -> None:
    text = "cluster.sbatch={a: no, b: 5, c: true, d: '5', e: 4G, f: 1e3, g: 010, 5: on}"
    wanted = {"a": "no", "b": 5, "c": True, "d": "5", "e": "4G", "f": "1e3", "g": "010", "5": "on"}
    assert value(run_yaml, "cluster.sbatch", text) == wanted
    assert value(run_yaml, "data.dataset.cut", "data.dataset.cut=1") == 1
    assert value(run_yaml, "data.dataset.cut", "data.dataset.cut=auto") == "auto"
    assert value(run_yaml, "cluster.sbatch", "cluster.sbatch=") == {}
    assert value(run_yaml, "data.dataset.flags", "data.dataset.flags=[yes, false]") == (True, False)


@pytest.mark.parametrize("null", ["", "~", "null"])
def test_null_in_an_optional_field(run_yaml: str, null: str) -> None:
    assert value(run_yaml, "optim.ema_decay", "optim.ema_decay=0.9", f"optim.ema_decay={null}") is None
    assert value(run_yaml, "cluster.partition", f"cluster.partition={null}") is None
    assert value(run_yaml, "method.extra", f"method.extra={null}") is None


def test_a_section_of_comments_is_a_section_of_defaults(run_yaml: str) -> None:
    assert loads(run_yaml + "compute:\n  # precision: bf16\n").compute == loads(run_yaml).compute


def test_infinity_where_a_field_takes_it(run_yaml: str) -> None:
    run = loads(run_yaml, overrides=["method.loss={name: hard, top: -.inf}"])
    assert run.method.options.loss.options.top == -math.inf
    assert loads(to_yaml(run)) == run


def test_paths(run_yaml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert loads(run_yaml, overrides=["out_dir=~/runs"]).out_dir == Path("/home/someone/runs")
    assert loads(run_yaml, overrides=["out_dir=2024"]).out_dir == Path("2024")


def test_overrides_set_and_replace_components(run_yaml: str) -> None:
    assert value(run_yaml, "method.name", "method=plain") == "plain"
    assert value(run_yaml, "method.loss.gamma", "method.loss.gamma=.2") == 0.2
    assert value(run_yaml, "method.loss.power", "method.loss=hard", "method.loss.power=3") == 3
    assert value(run_yaml, "method.loss.name", "method.loss.gamma=.2", "method.loss=hard") == "hard"
    assert value(run_yaml, "model.backbone.width", "model.backbone.width=4") == 4
    assert value(run_yaml, "method.extra.power", "method.extra.name=hard", "method.extra.power=4") == 4
    more = value(run_yaml, "method.more", "method.more=[soft, {name: hard, power: 5}]")
    assert [(one.name, vars(one.options)) for one in more] == [  # type: ignore[attr-defined]  # a tuple of components
        ("soft", {"gamma": 0.1}),
        ("hard", {"power": 5, "limit": None, "top": 0.0}),
    ]


def test_overrides_of_sections(run_yaml: str) -> None:
    assert value(run_yaml, "optim.lr", "optim={epochs: 3, global_batch: 4, lr: 2}") == 2.0
    assert value(run_yaml, "compute.precision", "compute.precision=fp32") == "fp32"
    assert value(run_yaml, "optim.lr", "optim.lr=1", " optim.lr =2") == 2.0
    assert value(run_yaml, "cluster.setup", "cluster.setup=['module load cuda', 'a=b']") == ("module load cuda", "a=b")


def test_options_without_a_name_are_the_default_components(run_yaml: str) -> None:
    run = loads(run_yaml.replace("twin", "{name: twin, loss: {gamma: 3}}"))
    assert run.method.options.loss.name == "soft"
    assert run.method.options.loss.options.gamma == 3.0


def test_anchors_and_merge_keys(run_yaml: str) -> None:
    data = "  dataset: toy\n  levels: &l {first_over: 50, last_under: 10}\n  shots: {<<: *l, last_under: 20}\n"
    run = loads(run_yaml.replace("  dataset: toy\n", data), overrides=["data.levels.first_over=60"])
    assert run.data.levels == Levels(first_over=60, last_under=10)
    assert run.data.shots == Levels(first_over=50, last_under=20)


def test_an_alias_is_a_copy(run_yaml: str) -> None:
    data = "  dataset: toy\n  levels: &l {first_over: 50}\n  shots: *l\n"
    run = loads(run_yaml.replace("  dataset: toy\n", data), overrides=["data.levels.first_over=60"])
    assert (run.data.levels.first_over, run.data.shots.first_over) == (60, 50)


def test_built_in_python_is_checked_too() -> None:
    with pytest.raises(ValueError, match="must be below epochs"):
        Optim(epochs=5, global_batch=32, warmup_epochs=5)
    with pytest.raises(ValueError, match="valid number"):
        Optim(epochs=5, global_batch=32, lr=True)
    with pytest.raises(ValueError, match="finite"):
        Optim(epochs=5, global_batch=32, lr=math.inf)


def test_all_problems_at_once_by_line(run_yaml: str) -> None:
    text = run_yaml.replace("epochs: 10", "epochs: ten").replace("backbone: tiny", "backbone: tinny") + "lr: 1\n"
    with pytest.raises(ConfigError) as caught:
        loads(text, "inat.yaml", ["optim.momentum=2"])
    assert caught.value.problems == [
        "inat.yaml:4: model.backbone: no 'tinny' among backbones. Did you mean 'tiny'? Known: tiny",
        "inat.yaml:7: optim.epochs: must be a whole number above 0; got 'ten'",
        "inat.yaml:9: lr: unknown key. Did you mean 'optim.lr'?",
        "override 'optim.momentum=2': optim.momentum: must be a number of at least 0 and below 1; got 2",
    ]
    assert str(caught.value) == "\n".join(caught.value.problems)


def test_to_yaml_writes_every_field(run_yaml: str) -> None:
    run = loads(run_yaml)
    text = to_yaml(run)
    assert "schedule: cosine\n" in text
    assert "  loss:\n    name: soft\n    gamma: 0.1\n" in text
    assert "crop_scale: [0.08, 1.0]\n" in text
    assert isinstance(run, RunConfig)
    assert loads(text) == run
