"""`--sweep` read as a grid: what is split where, what is ambiguous, names of elements."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrdc_hpc.config.grid import elements, read_grid, split

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("seed=0,1,2", ["0", "1", "2"]),
        ("optim.lr=[0.1, 0.2]", ["0.1", "0.2"]),
        ("seed=[0]", ["0"]),
        ("data.crop_scale=[0.5,1],[0.7,1]", ["[0.5,1]", "[0.7,1]"]),
        ("data.crop_scale=[[0.5,1]]", ["[0.5,1]"]),
        ("method={name: hrdc, fusion: tail},ce", ["{name: hrdc, fusion: tail}", "ce"]),
        ("x='a, b',\"c,d\",it's,e", ["'a, b'", '"c,d"', "it's", "e"]),
        ("x='',1", ["''", "1"]),
        ("x={a: 'b,}', c: [1,2]},0", ["{a: 'b,}', c: [1,2]}", "0"]),
    ],
)
def test_values(word: str, values: list[str]) -> None:
    assert list(read_grid([word], []).values()) == [values]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.epochs=2"], "has one value. An override that is not swept over goes in front of --sweep; a sweep"),
        (["data.crop_scale={a: 1, b: 2}"], "is written data.crop_scale=[{a: 1, b: 2}]"),
        (["seed"], "must read key=value,value"),
        (["optim..lr=1,2"], "must read key=value,value"),
        (["seed=1,,2"], "a value is missing"),
        (["seed=1,2,"], "a value is missing"),
        (["x=[1,2"], "a bracket or quote is not closed"),
        (["x=1],2["], "a bracket or quote is not closed"),
        (["seed=1,2", "seed=3,4"], "seed is given twice"),
        (["optim.lr=1,2"], "optim.lr is given twice"),
        (["name=a,b"], "--name of its own"),
        (["cluster.nodes=1,2"], "the elements of an array share it"),
    ],
)  # fmt: skip
def test_what_is_wrong_or_ambiguous(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_grid(words, ["optim.lr=0.3"])


GRID = """
method: [hrdc, "ce"]          # swept over first
data.crop_scale:
- [0.5, 1]
- {a: no}
seed: [0, 1e-3,]
"""


def test_a_grid_from_a_file_means_what_the_same_words_mean(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    assert read_grid([str(tmp_path / "grid.yaml"), "optim.momentum=0.8,0.9"], []) == {
        "method": ["hrdc", '"ce"'], "data.crop_scale": ["[0.5, 1]", "{a: no}"], "seed": ["0", "1e-3"],
        "optim.momentum": ["0.8", "0.9"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "must hold keys"),
        ("a: 1", "line 1: a: must be a list of values"),
        ("\na: []", "line 2: a: must be a list"),
        ("a:\n- b: 1\n  c: 2", "line 1: a: write each value in one line"),
        ("a: [", "cannot be read"),
        (None, "cannot be read"),
        ("optim.lr: [1, 2]", "optim.lr is given twice"),
        ("seed: [1]\nseed: [2]", "seed is given twice"),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "grid.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_grid([str(file)], ["optim.lr=0.3"])


def test_all_problems_at_once() -> None:
    with pytest.raises(ValueError, match=r"--sweep seed: .*\n--sweep name=1,2: "):
        read_grid(["seed", "name=1,2"], [])


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["method=a,b", "seed=0,1"], ["method-a_seed-0", "method-a_seed-1", "method-b_seed-0", "method-b_seed-1"]),
        (["optim.lr=1e-3,-1"], ["lr-1e-3", "lr--1"]),
        (["data.holdout.seed=1,2", "seed=[0]"], ["data.holdout.seed-1_seed-0", "data.holdout.seed-2_seed-0"]),
        (["x='a',b"], ["x-a", "x-b"]),
    ],
)  # fmt: skip
def test_names_are_readable(words: list[str], names: list[str]) -> None:
    assert [element.name for element in elements(read_grid(words, []))] == names


def test_odd_and_long_values_get_a_hash_and_stay_apart() -> None:
    grid = {"x": ["a:b", "a%b", "a b", "{a: b}", "long" * 20, "long" * 19]}
    names = [element.name for element in elements(grid)]
    assert len(set(names)) == 6
    assert all(RUN_NAME.fullmatch(name) and len(name) < 40 for name in names)


def test_a_name_does_not_depend_on_the_other_values() -> None:
    first, wider = {"x": ["a b", "c"]}, {"x": ["0", "a b", "c", "d"]}
    assert {e.name for e in elements(first)} < {e.name for e in elements(wider)}


@pytest.mark.parametrize("values", [["1", "1"], ["'a'", "a"]])
def test_elements_of_one_name_are_refused(values: list[str]) -> None:
    with pytest.raises(ValueError, match="would have another's name, such as x-"):
        elements({"x": values})


@given(st.lists(st.text(min_size=1, max_size=200), min_size=1, max_size=5, unique=True))
def test_every_name_is_a_run_s(values: list[str]) -> None:
    try:
        found = elements({"data.dataset": values, "seed": ["0", "1"]})
    except ValueError:  # they look alike
        return
    assert len({element.name for element in found}) == 2 * len(values)
    assert all(RUN_NAME.fullmatch(element.name) and len(element.name) <= 120 for element in found)


@given(st.lists(st.text("ab[]{},'\": ", max_size=8), min_size=1, max_size=4))
def test_nothing_is_lost_when_values_are_split(texts: list[str]) -> None:
    whole = ",".join(texts)
    try:
        parts = split(whole)
    except ValueError:
        return
    assert re.sub(" *, *", ",", ",".join(parts)) == re.sub(" *, *", ",", whole.strip())


def test_swept_values_and_shared_overrides_meet_as_one_means_them() -> None:
    hrdc, ce = elements({"method.fusion": ["average"], "method": ["hrdc", "ce"]})
    shared = ["data={dataset: cifar10_lt}", "optim.lr=0.5"]
    assert hrdc.overrides(shared) == ["method=hrdc", "method.fusion=average", *shared]
    assert ce.overrides(["method.loss=cdt"]) == ["method=ce", "method.fusion=average", "method.loss=cdt"]
    in_data = elements({"data.sampler": ["uniform"]})[0]
    assert in_data.overrides(shared) == ["data={dataset: cifar10_lt}", "data.sampler=uniform", "optim.lr=0.5"]
