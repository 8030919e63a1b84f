"""Whatever is in a config, to_yaml writes what loads reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hrdc_hpc.config.cluster import Cluster
from hrdc_hpc.config.load import ConfigError, loads, to_yaml
from hrdc_hpc.config.schema import Data, Levels, Model, Optim, RunConfig
from hrdc_hpc.config.types import Component

pytestmark = pytest.mark.usefixtures("components")

WORDS = st.sampled_from(
    ["no", "on", "true", "null", "~", "", "none", "None", "1e-3", "010", "1:30", "2024-01-31", ".inf"]
)
MARKS = st.sampled_from(
    ["- a", "a: b", "#a", "*a", "&a", "!a", "%a", "@a", "'", '"', "{", "[", "<<", "=", "|", ">", "?", "0x1f"]
)
BREAKS = st.sampled_from(["\x85", "a\u2028b", "\u2029 ", "a\x85\nb"])
ANY = WORDS | MARKS | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TEXT = ANY | BREAKS
LINE = ANY.filter(str.isprintable)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
SBATCH = st.dictionaries(
    LINE.filter(lambda key: not key.startswith("-")), LINE | st.integers() | st.booleans(), max_size=3
)


@given(
    lr=POSITIVE,
    decay=st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
    seed=st.integers(min_value=0),
    partition=st.none() | LINE,
    title=st.none() | TEXT,
    setup=st.lists(LINE, max_size=3),
    classes=st.lists(TEXT, max_size=3),
    sbatch=SBATCH,
    root=TEXT.filter(lambda text: not text.startswith("~")),
    ranks=st.none() | st.tuples(*[st.integers(min_value=0)] * 3),
)
# too_slow: a busy machine may take long to draw; how fast texts are drawn is no behaviour of ours
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)  # fmt: skip
def test_round_trip(
    run_yaml: str,
    lr: float,
    decay: float | None,
    seed: int,
    partition: str | None,
    title: str | None,
    setup: list[str],
    classes: list[str],
    sbatch: dict[str, str | int | bool],
    root: str,
    ranks: tuple[int, int, int] | None,
) -> None:
    run = loads(run_yaml)
    toy = type(run.data.dataset.options)
    changed = RunConfig(
        name="a",
        seed=seed,
        data=Data(
            dataset=Component("toy", toy(root=Path(root), classes=tuple(classes), title=title)),
            sampler=run.data.sampler,
            levels=Levels() if ranks is None else Levels(by="rank", ranks=ranks),
        ),
        model=run.model,
        method=run.method,
        optim=Optim(epochs=3, global_batch=8, lr=lr, ema_decay=decay, schedule=run.optim.schedule),
        cluster=Cluster(partition=partition, sbatch=sbatch, setup=tuple(setup)),
    )
    assert loads(to_yaml(changed)) == changed


@given(text=st.text(st.sampled_from("ab:-[]{}#&*!|>'\"\n \t,?%@`<~=0."), max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(text, "x.yaml", [text, f"name={text}", f"optim.{text}"])
    assert caught.value.problems
    assert str(caught.value) == "\n".join(caught.value.problems)


def test_a_default_that_is_not_resolved_is_written_by_name(run_yaml: str) -> None:
    run = loads(run_yaml)
    assert "backbone: tiny\n" in to_yaml(
        RunConfig(
            name="a",
            data=run.data,
            model=Model(backbone=Component("tiny")),
            method=run.method,
            optim=run.optim,
        )
    )
