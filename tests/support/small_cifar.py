"""Ranks that train on a few hundred of CIFAR-10's real images through the product's own loader, in seconds."""

from __future__ import annotations

from pathlib import Path

from hrdc_hpc.engine.place import Place, Stop

SMALL_CIFAR = """
name: {name}
data:
  dataset: {{name: cifar10_lt, root: "{root}", imbalance: 10}}
  levels: {{by: rank, ranks: [3, 4, 3]}}
  shots: {{by: rank, ranks: [3, 4, 3]}}
  image_size: 32
  eval_resize: 32
  crop: padded
model:
  backbone: {{name: resnet32, width: 4}}
  batch_norm: ghost
  ghost_size: 8
method: hrdc
optim:
  epochs: 3
  global_batch: 32
  lr: 0.05
  weight_decay_on: weights
  clip_norm: 5.0
compute: {{device: cpu, threads: 1, precision: fp16, deterministic: true}}
checkpoint: {{every_steps: 4}}
eval: {{batch_size: 50}}
log: {{every_steps: 1, tensorboard: false}}
"""
"""7 steps an epoch; resnet32, fp16 with its loss scale, ghost norm, clipping, the loader on the device."""


def train_small_cifar(run: Path, place: Place, stop: Stop) -> None:
    """Train on at most 60 images a class, and evaluate 150."""
    from dataclasses import replace

    import numpy as np

    from hrdc_hpc.data import cifar
    from hrdc_hpc.engine.trainer import train

    cifar.CIFAR10 = replace(cifar.CIFAR10, most=60)
    whole = cifar.open_cifar

    def fewer(*arguments, **keywords):
        images = whole(*arguments, **keywords)
        return images if images.split == "train" else images.subset(np.arange(150), images.split)

    cifar.open_cifar = fewer
    train(run, place, stop)
