"""Semantic and operational differences."""

from __future__ import annotations

import pytest

from hrdc_hpc.config.compare import differences
from hrdc_hpc.config.load import loads

pytestmark = pytest.mark.usefixtures("components")


def changes(run_yaml: str, *overrides: str) -> dict[str, tuple[str, bool]]:
    """Return key -> (text, operational) of what the overrides change."""
    found = differences(loads(run_yaml), loads(run_yaml, overrides=overrides))
    return {one.key: (str(one), one.operational) for one in found}


def test_nothing(run_yaml: str) -> None:
    assert changes(run_yaml, "optim.lr=0.10", "method={name: twin}") == {}


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("name=b", "name: first_run -> b"),
        ("out_dir=/x", "out_dir: runs -> /x"),
        ("data.loader.threads=2", "data.loader.threads: null -> 2"),
        ("data.dataset.root=/x", "data.dataset.root: data/toy -> /x"),
        ("optim.accumulation=2", "optim.accumulation: 1 -> 2"),
        ("compute.device=cpu", "compute.device: auto -> cpu"),
        ("compute.threads=2", "compute.threads: null -> 2"),
        ("checkpoint.every_steps=5", "checkpoint.every_steps: 500 -> 5"),
        ("cluster.nodes=2", "cluster.nodes: 1 -> 2"),
        ("log.tensorboard=no", "log.tensorboard: True -> False"),
    ],
)
def test_operational(run_yaml: str, override: str, text: str) -> None:
    assert changes(run_yaml, override) == {override.partition("=")[0]: (text, True)}


@pytest.mark.parametrize(
    ("override", "key", "text"),
    [
        ("optim.lr=.2", "optim.lr", "0.1 -> 0.2"),
        ("seed=1", "seed", "0 -> 1"),
        ("data.flip=no", "data.flip", "True -> False"),
        ("data.shots.last_under=10", "data.shots.last_under", "20 -> 10"),
        ("data.crop_scale=[.1, 1]", "data.crop_scale", "(0.08, 1.0) -> (0.1, 1.0)"),
        ("data.dataset.classes=[a]", "data.dataset.classes", "() -> ('a',)"),
        ("compute.precision=fp32", "compute.precision", "auto -> fp32"),
        ("optim.ema_decay=.9", "optim.ema_decay", "null -> 0.9"),
        ("method=plain", "method", "twin -> plain"),
        ("method.loss=hard", "method.loss", "soft -> hard"),
        ("method.loss.gamma=.2", "method.loss.gamma", "0.1 -> 0.2"),
        ("method.extra=soft", "method.extra", "null -> soft"),
    ],
)
def test_semantic(run_yaml: str, override: str, key: str, text: str) -> None:
    assert changes(run_yaml, override) == {key: (f"{key}: {text}", False)}


def test_in_the_order_of_the_schema(run_yaml: str) -> None:
    found = changes(run_yaml, "cluster.nodes=2", "optim.lr=1", "seed=4", "optim.epochs=20")
    assert list(found) == ["seed", "optim.epochs", "optim.lr", "cluster.nodes"]
