"""Whether the global batch can be cut into the pieces that a number of ranks wants. Torch-free."""

from __future__ import annotations

from hrdc_hpc.config.schema import Model, Optim


def refuse_unfit_batch(model: Model, optim: Optim, world_size: int) -> None:
    """Raise ValueError, with what to change, if a rank has fewer images than pieces or no whole ghost groups.

    Pieces differ by one image at most. So with ghost groups of two and more all pieces are whole only if all are equal.
    """
    share = optim.global_batch // world_size
    if share == 0:
        raise ValueError(
            f"optim.global_batch: {optim.global_batch} images over {world_size} ranks leave some without any; set it to"
            f" at least {world_size}, or lower the number of ranks"
        )
    if optim.accumulation > share:
        raise ValueError(
            f"optim.accumulation: {optim.accumulation} pieces, but a rank's share of a step is {share} images"
            f" ({optim.global_batch} over {world_size} ranks); set it to at most {share}"
        )
    size, images, pieces = model.ghost_size, optim.global_batch, world_size * optim.accumulation
    if model.batch_norm != "ghost" or size == 1 or images % (pieces * size) == 0:
        return
    raise ValueError(
        f"model.ghost_size: got {size}, which must divide every piece of the batch; optim.global_batch {images} over"
        f" {world_size} ranks and optim.accumulation {optim.accumulation} makes pieces of {images / pieces:g} images."
        f" Set optim.global_batch to a multiple of {pieces * size}, lower optim.accumulation or the number of ranks, or"
        " set another model.ghost_size (which learns something else)"
    )
