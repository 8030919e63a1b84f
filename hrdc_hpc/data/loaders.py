"""The loader that goes with a split: DALI for encoded images, the device's memory for small ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hrdc_hpc.config.schema import Data
from hrdc_hpc.data.batch import EvalBatches, TrainBatches
from hrdc_hpc.data.decoded import DecodedIndex
from hrdc_hpc.data.index import ImageIndex
from hrdc_hpc.data.order import Sampler
from hrdc_hpc.data.pixels import PixelArray
from hrdc_hpc.data.resident import ResidentEvalLoader, ResidentTrainLoader


def train_loader(
    images: ImageIndex | PixelArray, data: Data, sampler: Sampler, *, cores: int, **settings: Any
) -> TrainBatches:
    """Return the training loader; `settings` as of TrainLoader, `cores` decode unless data.loader.threads is set."""
    if isinstance(images, PixelArray):
        return ResidentTrainLoader(images, data, sampler, **settings)
    from hrdc_hpc.data.loader import TrainLoader  # DALI, which data in memory does not need

    if isinstance(images, DecodedIndex):  # there is nothing in it for a GPU to decode
        data = replace(data, loader=replace(data.loader, decoder="cpu"))
    return TrainLoader(images, data, sampler, cores=cores, **settings)


def eval_loader(images: ImageIndex | PixelArray, data: Data, *, cores: int, **settings: Any) -> EvalBatches:
    """Return the evaluation loader; `settings` as of EvalLoader."""
    if isinstance(images, PixelArray):
        return ResidentEvalLoader(images, data, **settings)
    from hrdc_hpc.data.loader import EvalLoader

    return EvalLoader(images, data, cores=cores, **settings)
