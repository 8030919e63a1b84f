"""What a network says of images without labels, decoded, cropped and batched as in the evaluation of its run.

Axis legend: B images of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.classes import ClassInfo
from hrdc_hpc.data.index import BadFile, ImageIndex
from hrdc_hpc.data.loose import LooseImage, as_index, as_pixels
from hrdc_hpc.data.pixels import PixelArray
from hrdc_hpc.engine.evaluation import Evaluator
from hrdc_hpc.engine.parts import eval_loader
from hrdc_hpc.engine.precision import pick_precision
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.methods.base import Method
from hrdc_hpc.models.network import Network


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer for one image; arrays are float32 [C]."""

    image: str
    logits: Mapping[str, NDArray[np.float32]]
    """By head."""
    probabilities: Mapping[str, NDArray[np.float32]]
    """By prediction: each head alone and every fusion."""


def is_resident(config: RunConfig) -> bool:
    """Whether the run's data set is one of small images in memory: padded crops are for these, and these need them."""
    return config.data.crop == "padded"


def predict(
    network: Network, method: Method, config: RunConfig, classes: ClassInfo, images: Sequence[LooseImage],
    processes: Processes,
) -> Iterator[Prediction | BadFile]:  # fmt: skip
    """Yield the answer for each image in turn, or why there is none, on one rank.

    The images are batched as an evaluation of them would batch them: for the files of the evaluation split, in its
    order, the logits are those of the evaluation bit for bit. A batch of another size may differ in the last bits.
    """
    split: ImageIndex | PixelArray
    if is_resident(config):
        split, images, bad = as_pixels(images, classes.names)
        yield from bad
        if not images:
            return
    else:
        split = as_index(images, classes.names)
    skipping = replace(config, data=replace(config.data, on_bad_image="skip"))
    loader = eval_loader(skipping, split, processes)
    precision = pick_precision(config.compute, processes.device)
    evaluator = Evaluator(network, method, loader, config, classes, precision, processes)
    network.eval()
    try:
        for batch in loader.batches():
            with torch.no_grad():
                logits = evaluator.outputs(batch).logits
                probabilities = method.predict(logits)
            heads, shares = _on_host(logits), _on_host(probabilities)
            for place in np.flatnonzero(batch.indices_B >= 0).tolist():
                number = int(batch.indices_B[place])
                why = loader.reasons.get(split.path(number)) if isinstance(split, ImageIndex) else None
                if why is not None:
                    yield BadFile(images[number].path, why)
                else:
                    yield Prediction(images[number].path, _row(heads, place), _row(shares, place))
    finally:
        loader.close()


def _on_host(tensors: Mapping[str, torch.Tensor]) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}


def _row(arrays: Mapping[str, NDArray[np.float32]], place: int) -> dict[str, NDArray[np.float32]]:
    return {name: array[place] for name, array in arrays.items()}
