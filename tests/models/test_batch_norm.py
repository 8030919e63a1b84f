"""The kinds of batch norm against plain batch norm on the images that each is about, in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hrdc_hpc.config.batch import refuse_unfit_batch
from hrdc_hpc.config.schema import Model, Optim
from hrdc_hpc.config.types import Component
from hrdc_hpc.engine.buffers import FlatBuffers
from hrdc_hpc.models.backbones import tiny
from hrdc_hpc.models.batch_norm import GhostBatchNorm2d, SyncBatchNorm2d, convert
from hrdc_hpc.models.network import build_network

from ranks import Ranks
from synced import CHANNELS, one_step, step_in_sync, two_norms

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SIZE = 4


def model(batch_norm: str, ghost_size: int = SIZE) -> Model:
    backbone = Component("tiny", tiny.Options(width=4))
    return Model(backbone=backbone, batch_norm=batch_norm, ghost_size=ghost_size)  # type: ignore[arg-type]


def close(one: object, other: object, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def some(images: int, channels: int = CHANNELS) -> Tensor:
    drawn = torch.randn(images, channels, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(images))
    return 3 + 2 * drawn


def norm(kind: str = "per_rank", *, seed: int = 0) -> nn.Module:
    """A batch norm that has learnt something, of a kind."""
    torch.manual_seed(seed)
    plain = nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=0.3).double()
    for tensor in (plain.weight, plain.bias, plain.running_mean):
        assert tensor is not None
        nn.init.normal_(tensor)
    network = convert(nn.Sequential(plain), model(kind))
    assert isinstance(network, nn.Sequential)
    return network[0]


# all kinds


@pytest.mark.parametrize("kind", ["per_rank", "sync", "ghost"])
def test_kinds_differ_in_no_weight_and_no_name(kind: str) -> None:
    torch.manual_seed(0)
    plain = build_network(model("per_rank"), ("plain",), 10)
    torch.manual_seed(0)
    network = build_network(model(kind), ("plain",), 10)
    names = list(network.state_dict())
    assert names == list(plain.state_dict())
    assert [name for name, _ in network.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in network.state_dict().items())
    assert all(isinstance(m, nn.BatchNorm2d) for n, m in network.named_modules() if f"{n}.running_mean" in names)


@pytest.mark.parametrize("kind", ["sync", "ghost"])
def test_evaluation_is_that_of_plain_batch_norm(kind: str) -> None:
    images = some(7)
    assert torch.equal(norm(kind).eval()(images), norm().eval()(images))


@pytest.mark.parametrize("kind", ["sync", "ghost"])
def test_statistics_are_learnt_inside_the_flat_tensor(kind: str) -> None:
    network = build_network(model(kind), ("plain",), 10)
    flat = FlatBuffers(network).flat
    before = flat.clone()
    with torch.no_grad():
        network(torch.randn(2 * SIZE, 3, 32, 32))
    assert (flat != before).all()
    mean = network.get_buffer("backbone.stages.2.bn2.running_mean")
    assert mean.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
    assert network.get_buffer("backbone.stages.2.bn2.num_batches_tracked") == 1


# over all ranks


@pytest.mark.parametrize("shares", [[1, 6], [3, 1, 2]], ids=str)
def test_sync_on_uneven_ranks_is_one_batch_norm_over_all_images(shares: list[int], tmp_path: Path) -> None:
    images, pull = some(sum(shares)), some(sum(shares)) - 2
    torch.save({"images": images, "pull": pull, "shares": shares}, tmp_path / "inputs.pt")
    Ranks(tmp_path, len(shares), target=step_in_sync).finish()
    alone = one_step(two_norms(), images, pull)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(len(shares))]
    for what in ("outputs", "images", "evaluated"):
        close(torch.cat([rank[what] for rank in ranks]), alone[what])
    for name, gradient in alone["gradients"].items():
        close(sum(rank["gradients"][name] for rank in ranks), gradient)
    for rank in ranks:
        close(rank["buffers"], alone["buffers"])


def test_sync_without_other_ranks_is_plain_batch_norm() -> None:
    images = some(6)
    ours, plain = norm("sync"), norm()
    assert isinstance(ours, SyncBatchNorm2d)
    close(one_step(ours, images, images), one_step(plain, images, images), 0)


# over groups


def by_hand(images: Tensor) -> tuple[nn.ModuleList, Tensor]:
    """One plain batch norm a group: they, and their outputs."""
    norms = nn.ModuleList([norm() for _ in range(len(images) // SIZE)])
    outputs = [one(group) for one, group in zip(norms, images.split(SIZE), strict=True)]
    return norms, torch.cat(outputs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_ghost_is_plain_batch_norm_on_each_group(layout: torch.memory_format) -> None:
    images = some(3 * SIZE).contiguous(memory_format=layout)
    images[:SIZE] *= 10
    pull = some(3 * SIZE) - 2
    ghost = norm("ghost")
    found = one_step(ghost, images, pull)
    theirs = images.clone().requires_grad_()
    norms, outputs = by_hand(theirs)
    (outputs * pull).sum().backward()
    close(found["outputs"], outputs.detach())
    close(found["images"], theirs.grad)
    assert found["outputs"].is_contiguous(memory_format=layout)
    assert found["images"].is_contiguous(memory_format=layout)
    for name in ("weight", "bias"):
        close(found["gradients"][name], sum(one.get_parameter(name).grad for one in norms))
    for name in ("running_mean", "running_var"):
        close(ghost.get_buffer(name), sum(one.get_buffer(name) for one in norms) / 3)
    assert ghost.get_buffer("num_batches_tracked") == 1


def test_ghost_gradients_against_finite_differences() -> None:
    ghost = norm("ghost")
    assert isinstance(ghost, GhostBatchNorm2d)
    images = some(2 * SIZE)[:, :, :2, :1].clone().requires_grad_()

    def forward(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(ghost, {"weight": weight, "bias": bias}, images)

    assert torch.autograd.gradcheck(forward, (images, ghost.weight, ghost.bias))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ghost_on_more_ranks_has_the_same_outputs_and_on_average_the_same_statistics(ranks: int) -> None:
    images = some(4 * SIZE)
    alone, several = norm("ghost"), [norm("ghost") for _ in range(ranks)]
    for _ in range(3):
        whole = alone(images)
        parts = [one(share) for one, share in zip(several, images.chunk(ranks), strict=True)]
        assert torch.equal(torch.cat(parts), whole)
        images = images.flip(0).square()
    for name in ("running_mean", "running_var"):
        close(sum(one.get_buffer(name) for one in several) / ranks, alone.get_buffer(name), 1e-13)


def test_ghost_under_bf16_keeps_statistics_in_fp32() -> None:
    ghost, images = norm("ghost").float(), some(2 * SIZE).bfloat16()
    outputs = ghost(images)
    assert outputs.dtype == torch.bfloat16
    assert ghost.get_buffer("running_var").dtype == torch.float32
    close(outputs.double(), norm("ghost")(images.double()).detach(), 0.05)


def test_ghost_refuses_a_batch_with_a_broken_group() -> None:
    with pytest.raises(ValueError, match=r"7 images are no multiple of model\.ghost_size, 4; change it, optim\.glob"):
        norm("ghost")(some(7))


def test_ghost_is_compiled_in_one_piece() -> None:
    eager, compiled, images = norm("ghost"), norm("ghost"), some(2 * SIZE)
    program = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    close(program(images), eager(images))
    close(dict(compiled.named_buffers()), dict(eager.named_buffers()))


@pytest.mark.parametrize(
    ("kind", "size", "batch", "ranks", "accumulation", "fits"),
    [
        ("ghost", 32, 256, 8, 1, True),
        ("ghost", 32, 256, 2, 4, True),
        ("ghost", 32, 256, 3, 1, False),
        ("ghost", 32, 256, 8, 2, False),
        ("ghost", 16, 33, 2, 1, False),  # 16 images on the first rank, 17 on the second
        ("ghost", 1, 7, 2, 3, True),
        ("per_rank", 32, 256, 3, 1, True),
        ("sync", 32, 256, 3, 1, True),
    ],
)
def test_batches_that_ghost_cannot_group(
    kind: str, size: int, batch: int, ranks: int, accumulation: int, fits: bool
) -> None:
    optim = Optim(epochs=1, global_batch=batch, accumulation=accumulation)
    if fits:
        refuse_unfit_batch(model(kind, size), optim, ranks)
        return
    with pytest.raises(ValueError, match=rf"ghost_size: got {size},.* {ranks} ranks.* a multiple of") as error:
        refuse_unfit_batch(model(kind, size), optim, ranks)
    assert f"multiple of {ranks * accumulation * size}," in str(error.value)
