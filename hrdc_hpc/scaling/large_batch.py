"""What another global batch asks of the learning rate, and what is known of large and small ones. Pure, torch-free.

Sources: the linear rule with five epochs of warm-up, and 8k images as the batch up to which it held for ResNet-50 on
ImageNet: arXiv 1706.02677. Epochs that MLPerf's ResNet-50 needed with LARS: 35 at a batch of 3.2k, 56 at 32k, 77 at
57k. What small batches per GPU cost: MLPerf's logs, against 8 H100 at 400 images each.
"""

from __future__ import annotations

from hrdc_hpc.config.schema import Optim, RunConfig
from hrdc_hpc.engine.learning_rate import peak_rate

_HELD_TO = 8192
"""Images per step up to which the linear rule is known to hold."""
_WARM_UP_EPOCHS = 5
_SMALL = 64
"""Images per GPU below which ResNet-50 is bound by launching kernels."""


def rate_for(optim: Optim, global_batch: int) -> float:
    """Return the peak rate that the linear rule gives another batch, whether or not the config asks for the rule."""
    return peak_rate(optim) * global_batch / optim.global_batch


def of_the_batch(config: RunConfig, global_batch: int) -> list[str]:
    """Return what a global batch asks of the learning rate, a sentence or two each; [] for the config's own."""
    optim = config.optim
    factor = global_batch / optim.global_batch
    if factor == 1:
        return []
    now, then = rate_for(optim, optim.global_batch), rate_for(optim, global_batch)
    how = (
        f"lr_batch {optim.lr_batch} does that by itself"
        if optim.lr_batch is not None
        else f"optim.lr_batch is not set, so nothing scales by itself: set optim.lr_batch={optim.global_batch}"
    )
    said = [
        f"A batch of {global_batch:,} instead of {optim.global_batch:,} is another run: by the linear rule its peak"
        f" learning rate is {then:.4g} instead of {now:.4g} ({how})."
    ]
    if factor >= 2 and optim.warmup_epochs < _WARM_UP_EPOCHS:
        said.append(
            f"The rule wants a warm-up: optim.warmup_epochs={_WARM_UP_EPOCHS}; the config has {optim.warmup_epochs:g}."
        )
    if global_batch > _HELD_TO:
        said.append(
            f"{global_batch:,} is beyond what the rule is known to hold for: {_HELD_TO:,} images (ResNet-50 on"
            " ImageNet). Beyond it more epochs were needed even with LARS: 35 at 3.2k, 56 at 32k, 77 at 57k images"
            " (MLPerf). The same epochs may not reach the same accuracy."
        )
    if factor > 1:
        said.append(
            "More images per second are not more accuracy per hour: no rule is known for long-tailed data. Compare with"
            f" --to-accuracy METRIC=PERCENT --batches {optim.global_batch},{global_batch} before you rely on it."
        )
    return said


def of_the_share(config: RunConfig, batch_per_rank: float, base_per_rank: float, worker: str) -> list[str]:
    """Return what fewer images per GPU mean where the global batch stays; `worker`: 'GPU' or 'rank'."""
    said = []
    if batch_per_rank < base_per_rank and config.model.batch_norm == "per_rank":
        said.append(
            f"Batch norm sees {batch_per_rank:g} images at a time instead of {base_per_rank:g}"
            " (model.batch_norm: per_rank), so results may differ between sizes; ghost and sync do not depend on it."
        )
    if worker == "GPU" and batch_per_rank < _SMALL:
        said.append(
            f"{batch_per_rank:g} images per GPU is little: ResNet-50 is bound by launching kernels below {_SMALL}."
            " Published (MLPerf, against 8 GPUs at 400): 64 GPUs at 50 images keep 69 %, 768 at 42 62 %, 3,584 at 16"
            " 39 %."
        )
    return said
