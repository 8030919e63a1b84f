from __future__ import annotations

import collections
import enum
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hrdc_hpc.engine import checkpoint
from hrdc_hpc.engine.checkpoint import Saver
from hrdc_hpc.engine.checkpoint_files import MANIFEST, STATE, HashedFile, Manifest, render

from savers import free, identical, none_expected


def save(folder: Path, step: int, state: dict[str, Any], keep_last: int = 100) -> checkpoint.Saved:
    return checkpoint.save(folder, step, state, {"world_size": 1}, lease_check=free, keep_last=keep_last)


def trained(optimizer_class: type[torch.optim.Optimizer], **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = optimizer_class(network.parameters(), lr=0.1, **options)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(5, 3, 4, 4)).square().mean().backward()
        optimizer.step()
    return network, optimizer


def varied() -> dict[str, Any]:
    """Views of every kind, types of every kind, plain values of every kind."""
    torch.manual_seed(1)
    flat, tied = torch.randn(100), torch.randn(3, 3)
    network, optimizer = trained(torch.optim.SGD, momentum=0.9)
    return {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "views": [flat[:10], flat[10:22].view(3, 4), flat[::2], flat.view(10, 10).t(), flat[3:4].expand(5)],
        "tied": (tied, tied, tied.view(9), tied[:]),
        "kinds": {
            1: torch.tensor(3), 2: torch.randn(4).to(torch.bfloat16), 3: torch.tensor([True, False]),
            4: torch.randn(3, dtype=torch.complex64).conj(), 5: torch.empty(0, 3), 6: torch.tensor(2.0).double(),
            7: torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), 8: nn.Parameter(torch.randn(2)),
            9: torch.randint(0, 255, (7,), dtype=torch.uint8), 10: torch.as_strided(torch.randn(4), (2, 2), (1, 1)),
        },
        "plain": {"int": 2**70, "float": 0.1, "text": "ü", "none": None, "bool": True, "list": [1, (2.5, "a"), {}]},
    }  # fmt: skip


def test_everything_that_is_allowed_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = varied()
    saved = save(tmp_path, 7, state)
    assert saved.path == tmp_path / "step-00000007"
    assert saved.bytes == (saved.path / STATE).stat().st_size
    loaded = checkpoint.load(saved.path)
    assert identical(state, loaded)
    assert identical(state["tied"][0], loaded["tied"][0])
    for number, tensor in enumerate(state["views"]):
        assert torch.equal(tensor, loaded["views"][number])
    assert loaded["plain"] == state["plain"]
    assert loaded["kinds"][7].is_contiguous(memory_format=torch.channels_last)
    assert [type(loaded["tied"]), type(loaded["plain"]["int"])] == [tuple, int]


@pytest.mark.parametrize(
    ("kind", "options"),
    [(torch.optim.SGD, {"momentum": 0.9, "nesterov": True}), (torch.optim.AdamW, {"amsgrad": True})],
)
def test_optimizers_go_on_as_if_never_saved(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    network, optimizer = trained(kind, **options)
    save(tmp_path, 1, {"network": network.state_dict(), "optimizer": optimizer.state_dict()})
    loaded = checkpoint.load(tmp_path / "step-00000001")
    other, its_optimizer = trained(kind, **options)
    other.load_state_dict(loaded["network"])
    its_optimizer.load_state_dict(loaded["optimizer"])
    x = torch.randn(5, 3, 4, 4)
    for net, opt in ((network, optimizer), (other, its_optimizer)):
        opt.zero_grad()
        net(x).square().mean().backward()
        opt.step()
    assert identical(network.state_dict(), other.state_dict())
    assert identical(optimizer.state_dict(), its_optimizer.state_dict())


def test_a_view_is_saved_without_its_storage_and_the_same_values_once(tmp_path: Path) -> None:
    base = torch.randn(1_000_000)
    part = save(tmp_path, 1, {"part": base[1000:1010], "row": base.view(1000, 1000)[:, 3]})
    assert part.bytes < 10_000
    all_views = {str(start): base[start : start + 1000] for start in range(0, 1_000_000, 1000)}
    assert 4_000_000 < save(tmp_path, 2, all_views).bytes < 4_400_000
    twice = save(tmp_path, 3, {"a": base, "b": base, "c": base.view(1000, 1000), "d": base.view(1000, 1000).t()})
    assert twice.bytes < 4_010_000
    loaded = checkpoint.load(twice.path)
    assert len({tensor.data_ptr() for tensor in loaded.values()}) == 1
    assert torch.equal(loaded["d"], base.view(1000, 1000).t())


def test_in_the_background_gives_the_same_bytes(tmp_path: Path) -> None:
    state = varied()
    files = {}
    for asynchronous in (False, True):
        folder = tmp_path / str(asynchronous)
        saver = Saver(folder, asynchronous=asynchronous, keep_last=9, lease_check=free)
        for step in (1, 2):  # the second into buffers that are used again
            state["views"][0].fill_(step)
            saver.save(step, state, {"epoch": step})
        saver.close()
        files[asynchronous] = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert files[True] == files[False]
    assert len(files[True]) == 4


def test_state_changed_right_after_save_is_not_what_is_saved(tmp_path: Path) -> None:
    state = {"flat": torch.zeros(500_000), "plain": {"step": 0}, "list": [1]}
    state["view"] = state["flat"][10:20]
    about = {"world_size": 2}
    saver = Saver(tmp_path, asynchronous=True, keep_last=9, lease_check=free)
    for step in range(1, 6):
        saver.save(step, state, about)
        state["flat"].fill_(step)
        state["plain"]["step"] = step
        state["list"].append(step)
        about["world_size"] += 1
    saver.close()
    for step in range(1, 6):
        loaded = checkpoint.load(tmp_path / checkpoint.folder_name(step))
        assert loaded["flat"].unique().tolist() == [step - 1]
        assert loaded["view"].unique().tolist() == [step - 1]
        assert loaded["plain"] == {"step": step - 1}
        assert loaded["list"] == [1, *range(1, step)]
    found = checkpoint.latest(tmp_path, on_damaged=none_expected)
    assert found is not None
    assert (found.step, found.about) == (5, {"world_size": 6})


class Colour(enum.IntEnum):
    RED = 1


class Sub(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.float64(1.0), "numpy.float64"),
        (np.zeros(2), "numpy.ndarray"),
        ({1, 2}, "builtins.set"),
        (Colour.RED, "Colour"),
        (torch.Size([1]), "torch.Size"),
        (torch.float32, "torch.dtype"),
        (b"bytes", "builtins.bytes"),
        (1j, "builtins.complex"),
        (collections.Counter, "builtins.type"),
        (torch.zeros(2).as_subclass(Sub), "a plain tensor"),
        (torch.eye(2).to_sparse(), "a dense tensor"),
        (torch.empty(2, device="meta"), "a dense tensor"),
        ({(1, 2): 3}, "the key (1, 2) is a tuple"),
        ({np.int64(1): 3}, "is a int64"),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_cannot_be_loaded_safely_is_refused_by_name(
    value: Any, said: str, asynchronous: bool, tmp_path: Path
) -> None:
    saver = Saver(tmp_path, asynchronous=asynchronous, keep_last=1, lease_check=free)
    with pytest.raises(TypeError) as error:
        saver.save(1, {"fine": 1, "optimizer": {"state": [{0: value}]}}, {})
    saver.close()
    assert "state['optimizer']['state'][0][0]" in str(error.value)
    assert said in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("about", [{"a": (1, 2)}, {1: 2}, {"a": float("nan")}, {"a": Path("x")}])
def test_about_is_plain_json(about: dict[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="about: "):
        checkpoint.save(tmp_path, 1, {}, about, lease_check=free, keep_last=1)
    assert list(tmp_path.iterdir()) == []


class Bomb:
    """What a state made by somebody else may hold."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_loading_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "step-00000001"
    path.mkdir()
    file = HashedFile(path / STATE)
    torch.save({"a": Bomb()}, file)  # type: ignore[arg-type]
    (path / MANIFEST).write_bytes(render(Manifest(1, {}, {STATE: file.finish()})))
    file.close()
    assert checkpoint.problem(path) is None
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load(path)
    assert not (tmp_path / "exploded").exists()


def test_large_steps_are_sorted_as_numbers(tmp_path: Path) -> None:
    for step in (100_000_000, 99_999_999, 5):
        save(tmp_path, step, {"step": step})
    (tmp_path / "step-000000007").mkdir()  # no name of ours
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == [
        "step-00000005",
        "step-99999999",
        "step-100000000",
    ]
    found = checkpoint.latest(tmp_path, on_damaged=none_expected)
    assert found is not None
    assert checkpoint.load(found.path) == {"step": 100_000_000}


@pytest.mark.gpu
def test_from_a_gpu_through_pinned_memory(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    flat = torch.zeros(5_000_000, device="cuda")
    state = {
        "flat": flat,
        "view": flat[100:200],
        "host": torch.zeros(3),
        "last": flat.view(50, 100, 1000).transpose(0, 2),
    }
    files = {}
    for asynchronous in (False, True):
        saver = Saver(tmp_path / str(asynchronous), asynchronous=asynchronous, keep_last=9, lease_check=free)
        flat.zero_()
        for step in (1, 2, 3):
            saver.save(step, state, {})
            flat.add_(1)
        saver.close()
        if asynchronous:
            pinned = [buffer.is_pinned() for buffer in saver._copies._buffers]
            assert pinned == [True, True, False, True]
        files[asynchronous] = [p.read_bytes() for p in sorted((tmp_path / str(asynchronous)).rglob("*.pt"))]
    assert files[True] == files[False]
    for step, name in itertools.product((1, 2, 3), ("flat", "view", "last")):
        loaded = checkpoint.load(tmp_path / "True" / checkpoint.folder_name(step))
        assert loaded[name].unique().tolist() == [step - 1]
        assert loaded[name].device.type == "cpu"
