"""Builds what a run needs from its config: data, network, method, step, evaluator."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial
from threading import Thread

import numpy as np
import torch

from hrdc_hpc.config import registry
from hrdc_hpc.config.batch import refuse_unfit_batch
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.batch import Batch, EvalBatches, TrainBatches
from hrdc_hpc.data.classes import ClassInfo
from hrdc_hpc.data.holdout import split_off
from hrdc_hpc.data.index import ImageIndex, check_same_classes, class_info, open_split
from hrdc_hpc.data.loaders import eval_loader as make_eval_loader
from hrdc_hpc.data.loaders import train_loader
from hrdc_hpc.data.philox import uniforms
from hrdc_hpc.data.pixels import PixelArray
from hrdc_hpc.engine.ema import ema_weight
from hrdc_hpc.engine.evaluation import Evaluator
from hrdc_hpc.engine.faults import Faults
from hrdc_hpc.engine.learning_rate import learning_rate
from hrdc_hpc.engine.place import NeverStop, Stop, Stopped
from hrdc_hpc.engine.precision import Precision, pick_precision
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.engine.step import EMA_WEIGHT, LR, POISON, TrainStep
from hrdc_hpc.methods.base import Method
from hrdc_hpc.models.network import Network, build_network

_SAMPLERS = "hrdc_hpc.data.samplers"
_METHODS = "hrdc_hpc.methods"


@dataclass(frozen=True)
class Images:
    """Both splits and what is known of the classes."""

    train: ImageIndex | PixelArray
    evaluation: ImageIndex | PixelArray
    """The test split, or what data.holdout keeps out of the training split."""
    classes: ClassInfo

    @property
    def fingerprint(self) -> str:
        """Identifies both splits."""
        return f"{self.train.fingerprint}-{self.evaluation.fingerprint}"


@dataclass(frozen=True)
class Parts:
    """Everything that the training loop drives."""

    images: Images
    method: Method
    step: TrainStep
    precision: Precision
    loaders: dict[str, TrainBatches]
    evaluator: Evaluator

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return next(iter(self.loaders.values())).steps_per_epoch

    def close(self) -> None:
        """End the loaders' threads."""
        for loader in self.loaders.values():
            loader.close()


def open_images(
    config: RunConfig, processes: Processes, *, local_first: bool, stop: Stop | None = None,
    together: Callable[[], None] | None = None,
) -> Images:  # fmt: skip
    """Prepare and open both splits: one rank a node first, so that the others find what it has cached.

    A rank that `stop` tells to stop does not wait until a large data set is looked through. `together` is called by all
    ranks after each turn; unset: they wait for each other. Raises what it raises, Stopped if it raises nothing.
    """
    images: Images | None = None
    for turn in (True, False):
        if local_first is turn:
            images = _unless_stopped(partial(_open, config, trust_cache=not turn), stop or NeverStop())
        (together or processes.barrier)()
    if images is None:
        raise Stopped((stop or NeverStop()).reason() or "")
    return images


def _unless_stopped(work: Callable[[], Images], stop: Stop) -> Images | None:
    """Work in another thread, which is left to itself when it is time to stop; None then."""
    done: Future[Images] = Future()

    def carry_out() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed on
            done.set_exception(error)

    Thread(target=carry_out, name="open images", daemon=True).start()
    while stop.reason() is None:
        wait([done], timeout=0.2)
        if done.done():
            return done.result()
    return None


def _open(config: RunConfig, *, trust_cache: bool) -> Images:
    train = open_split(config.data, "train", trust_cache=trust_cache)
    classes = class_info(train, config.data)
    if config.data.holdout is None:
        evaluation = open_split(config.data, "val", trust_cache=trust_cache)
        check_same_classes(train, evaluation)
        return Images(train, evaluation, classes)
    trained, held = split_off(train, config.data.holdout)
    # groups stay those of the whole training set, which the final run trains on
    return Images(trained, held, replace(classes, counts_C=trained.counts_C))


def build_model(config: RunConfig, classes: ClassInfo, device: torch.device) -> tuple[Network, Method]:
    """Network and method on the device; the initial weights depend on the seed alone."""
    method: Method = registry.build(_METHODS, config.method, classes, device)
    torch.manual_seed(config.seed)
    network = build_network(config.model, method.heads, classes.number)
    layout = torch.channels_last if config.compute.channels_last else torch.contiguous_format
    # made on the CPU and then moved: the same weights on any device
    return network.to(device=device, memory_format=layout), method  # type: ignore[call-overload]  # torch's stub has no memory_format beside device


def build_parts(config: RunConfig, images: Images, processes: Processes, *, poisonable: bool = False) -> Parts:
    """Build everything that the training loop drives, on every rank. ValueError for a batch that they cannot cut.

    `poisonable`: losses may be poisoned on purpose, see faults.py.
    """
    refuse_unfit_batch(config.model, config.optim, processes.world_size)
    network, method = build_model(config, images.classes, processes.device)
    precision = pick_precision(config.compute, processes.device)
    resident = isinstance(images.train, PixelArray)
    step = TrainStep(network, method, config, precision, processes, resident=resident, poisonable=poisonable)
    loaders = {
        stream.name: train_loader(
            images.train,
            config.data,
            registry.build(
                _SAMPLERS,
                stream.sampler or config.data.sampler,
                images.train.labels_N,
                images.classes.counts_C,
                epochs=config.optim.epochs,
            ),
            classes=images.classes.number,
            seed=config.seed,
            stream=stream.name,
            global_batch=config.optim.global_batch,
            rank=processes.rank,
            world_size=processes.world_size,
            device=processes.device,
            cores=max(1, processes.cores // len(method.streams)),
        )
        for stream in method.streams
    }
    evaluator = Evaluator(
        network, method, eval_loader(config, images.evaluation, processes), config, images.classes, precision, processes
    )
    return Parts(images, method, step, precision, loaders, evaluator)


def eval_loader(config: RunConfig, index: ImageIndex | PixelArray, processes: Processes) -> EvalBatches:
    """Return the loader over all evaluation images."""
    return make_eval_loader(
        index,
        config.data,
        batch_size=min(config.eval.batch_size, len(index.labels_N)),
        rank=processes.rank,
        world_size=processes.world_size,
        device=processes.device,
        cores=processes.cores,
    )


def step_draws(method: Method, seed: int, stream: str, batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the random numbers that a method asked for, float32 [B, n] by purpose.

    They are functions of seed, stream, epoch, position and purpose alone.
    """
    drawn = {
        purpose: uniforms(seed, purpose, batch.epoch, batch.positions_B, number, stream=stream, dtype=np.float32)
        for purpose, number in method.draws.items()
    }
    on_gpu = device.type == "cuda"  # from pinned memory: the host does not wait for the copy
    tensors = {purpose: torch.from_numpy(values) for purpose, values in drawn.items()}
    return {p: (t.pin_memory() if on_gpu else t).to(device, non_blocking=True) for p, t in tensors.items()}


def scalars_at(step: int, config: RunConfig, parts: Parts, faults: Faults) -> dict[str, float]:
    """Return the schedule values of a 0-based step of the run."""
    decay, per_epoch = config.optim.ema_decay, parts.steps_per_epoch
    return {
        LR: learning_rate(step, steps_per_epoch=per_epoch, optim=config.optim),
        EMA_WEIGHT: ema_weight(step, decay) if decay is not None else 0.0,
        **({POISON: faults.poison(step)} if faults.poisons else {}),
        **parts.method.scalars(step // per_epoch, config.optim.epochs),
    }


def rehearse(config: RunConfig, parts: Parts, processes: Processes, between: Callable[[], None] = lambda: None) -> None:
    """Warm the step up, compile and capture it, on batches that say nothing; nothing is learnt.

    `between` is called after each part of it, on all ranks.
    """
    blank = {name: loader.blank() for name, loader in parts.loaders.items()}
    draws = {
        name: step_draws(parts.method, config.seed, name, batch, processes.device) for name, batch in blank.items()
    }
    parts.step.rehearse(blank, draws, between)
