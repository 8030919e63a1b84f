"""Training loops of other projects, as contenders on one resident batch.

With HRDC_PEERS=FOLDER the function that trains an epoch is imported from the peer's own script, unmodified: from
checkouts of pytorch-image-models, examples and vision below FOLDER ('own script'). Without it the few lines that a step
consists of are written anew here ('loop re-expressed'): what is read back from the device in each step is what costs,
so that is what is kept. Peers get images that are normalised already; ours are normalised within the step.

Axis legend: B images of the batch, C classes, S side of the image.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hrdc_hpc.engine.roofline import synchronize
from hrdc_hpc.engine.rounds import Contender
from hrdc_hpc.models.network import Network

LR, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 1e-4
TIMM, EXAMPLES = "pytorch-image-models/train.py", "examples/imagenet/main.py"
VISION = "vision/references/classification/train.py"
OWN, RETOLD = "own script", "loop re-expressed"


class Logits(nn.Module):
    """A network with one head as other projects have it: images in, logits out."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCSS: Tensor) -> Tensor:
        """Return the only head's logits [B, C]."""
        _, logits = self.network(images_BCSS)
        (logits_BC,) = logits.values()
        return logits_BC  # type: ignore[no-any-return]  # modules return Any


class Resident:
    """A loader that yields the same batch over and over."""

    mixup_enabled = False

    def __init__(self, images_BCSS: Tensor, labels_B: Tensor, number: int) -> None:
        self._batch, self._number = (images_BCSS, labels_B), number

    def __len__(self) -> int:
        """Batches."""
        return self._number

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self._batch for _ in range(self._number))


@dataclass(frozen=True)
class Setting:
    """What all peers are given."""

    make: Callable[[], Network]
    """Makes the network with one head, always with the same weights."""
    images_BCSS: Tensor
    """Normalised, float32, NCHW."""
    labels_B: Tensor

    @property
    def device(self) -> torch.device:
        """Where all of it lies."""
        return self.images_BCSS.device

    def model(self, *, channels_last: bool = False) -> nn.Module:
        """Return a network of its own for one peer."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return Logits(self.make()).to(device=self.device, memory_format=layout)  # type: ignore[call-overload, no-any-return]  # torch's stub has no memory_format beside device

    def batches(self, number: int) -> Resident:
        """Return a loader of so many batches."""
        return Resident(self.images_BCSS, self.labels_B, number)


@dataclass(frozen=True)
class Peer:
    """A contender, and what its row says of it."""

    contender: Contender
    note: str


def peers(setting: Setting) -> list[Peer]:
    """Return timm, pytorch/examples and torchvision's reference by default; on a GPU also with their amp."""
    variants: list[tuple[str, Callable[..., Callable[[int], None]], str, dict[str, bool]]] = [
        ("timm", _timm, TIMM, {}),
        ("timm --channels-last", _timm, TIMM, {"channels_last": True}),
        ("pytorch/examples imagenet", _examples, EXAMPLES, {}),
        ("torchvision reference", _torchvision, VISION, {}),
    ]
    if setting.device.type == "cuda":
        variants += [
            ("timm --amp --channels-last", _timm, TIMM, {"channels_last": True, "amp": True}),
            ("torchvision reference --amp", _torchvision, VISION, {"amp": True}),
        ]
    found = []
    for name, make, path, flags in variants:
        script = _script(path)
        run = _Lazily(partial(make, setting, script, **flags), setting.device)
        found.append(Peer(Contender(name, run, len(setting.labels_B)), OWN if script else RETOLD))
    return found


class _Lazily:
    """Builds a peer when it is first called, so that what fails is its row's reason, and waits for the device."""

    def __init__(self, build: Callable[[], Callable[[int], None]], device: torch.device) -> None:
        self._build, self._device = build, device
        self._run: Callable[[int], None] | None = None

    def __call__(self, number: int) -> None:
        """Take that many steps."""
        self._run = self._run or self._build()
        with contextlib.redirect_stdout(io.StringIO()):  # scripts print as they go
            self._run(number)
        synchronize(self._device)


def _script(path: str) -> Path | None:
    folder = os.environ.get("HRDC_PEERS")
    script = Path(folder).expanduser() / path if folder else None
    return script if script and script.is_file() else None


def _import(script: Path) -> ModuleType:
    """Import a script as a module; what lies beside it, under names like 'utils', is its own for the import only."""
    before = set(sys.modules)
    sys.path.insert(0, str(script.parent))
    try:
        spec = importlib.util.spec_from_file_location(f"peer_{script.parent.name}", script)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(script.parent))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent == script.parent:
                del sys.modules[name]
    return module


def _timm(
    setting: Setting, script: Path | None, *, channels_last: bool = False, amp: bool = False
) -> Callable[[int], None]:
    """timm: its optimizer factory and its loss; the loss is read in each step."""
    if importlib.util.find_spec("timm") is None:
        raise ModuleNotFoundError("not measured: timm is not installed")
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2

    model = setting.model(channels_last=channels_last)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=LR, weight_decay=WEIGHT_DECAY, momentum=MOMENTUM)
    loss = LabelSmoothingCrossEntropy(smoothing=0.1).to(setting.device)

    def autocast() -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(setting.device.type, torch.bfloat16) if amp else contextlib.nullcontext()

    if script is None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return lambda number: _loop(
            model, loss, optimizer, setting.batches(number), reads="loss", autocast=autocast, layout=layout
        )
    module = _import(script)
    args = module.parser.parse_args(["--channels-last"] if channels_last else [])
    # what its main() adds to the arguments on one device with its default, the prefetching loader
    args.distributed, args.world_size, args.rank, args.prefetcher = False, 1, 0, True
    train = module.train_one_epoch
    given: dict[str, Any] = {"device": setting.device, "amp_autocast": autocast}
    if "task" in inspect.signature(train).parameters:
        given["task"] = module.ClassificationTask(model=model, criterion=loss, device=setting.device, verbose=False)
    else:
        given["loss_fn"] = loss
    return lambda number: train(0, model, setting.batches(number), optimizer, args=args, **given)


def _examples(setting: Setting, script: Path | None) -> Callable[[int], None]:
    """pytorch/examples: loss is read in each step, accuracies are computed and kept on the device."""
    model, loss = setting.model(), nn.CrossEntropyLoss().to(setting.device)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    if script is None:
        return lambda number: _loop(model, loss, optimizer, setting.batches(number), reads="loss", accuracy=True)
    module = _import(script)
    args = module.parser.parse_args([])
    return lambda number: module.train(setting.batches(number), model, loss, optimizer, 0, setting.device, args)


def _torchvision(setting: Setting, script: Path | None, *, amp: bool = False) -> Callable[[int], None]:
    """torchvision's reference: loss and both accuracies are read in each step."""
    model, loss = setting.model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    scaler = torch.amp.GradScaler(setting.device.type) if amp else None
    if script is None:

        def autocast() -> contextlib.AbstractContextManager[Any]:
            return torch.autocast(setting.device.type, torch.float16) if amp else contextlib.nullcontext()

        return lambda number: _loop(
            model,
            loss,
            optimizer,
            setting.batches(number),
            reads="all",
            accuracy=True,
            autocast=autocast,
            scaler=scaler,
        )
    module = _import(script)
    args = module.get_args_parser().parse_args(["--amp"] if amp else [])
    return lambda number: module.train_one_epoch(
        model, loss, optimizer, setting.batches(number), setting.device, 0, args, None, scaler
    )


class _Mean:
    """A running mean, as every script has one."""

    def __init__(self) -> None:
        self.total: Any = 0.0
        self.count = 0

    def add(self, value: Any, number: int) -> None:
        """Take in the mean of so many images."""
        self.total = self.total + value * number
        self.count += number


def _loop(
    model: nn.Module,
    loss_of: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Resident,
    *,
    reads: Literal["loss", "all"],
    accuracy: bool = False,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    scaler: torch.amp.GradScaler | None = None,
    layout: torch.memory_format = torch.contiguous_format,
) -> None:
    """Train on a loader as the scripts do: forward, loss, backward, update, meters."""
    model.train()
    device = next(model.parameters()).device
    means = [_Mean() for _ in range(5)]
    began = time.time()
    for images, labels in loader:
        means[0].add(time.time() - began, 1)
        images_BCSS = images.to(device, non_blocking=True).contiguous(memory_format=layout)
        labels_B = labels.to(device, non_blocking=True)
        with autocast():
            logits_BC = model(images_BCSS)
            loss = loss_of(logits_BC, labels_B)
        optimizer.zero_grad()
        if scaler:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        number = len(labels_B)
        means[1].add(loss.item(), number)
        if accuracy:
            for mean, share in zip(means[2:], _top(logits_BC, labels_B, (1, 5)), strict=False):
                mean.add(share.item() if reads == "all" else share, number)
        means[4].add(time.time() - began, 1)
        began = time.time()


@torch.no_grad()
def _top(logits_BC: Tensor, labels_B: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """Percent of images whose class is among the k likeliest, for each k."""
    hits_BK = logits_BC.topk(max(ranks), dim=1).indices == labels_B[:, None]
    return [hits_BK[:, :k].any(dim=1).float().mean() * 100 for k in ranks]
