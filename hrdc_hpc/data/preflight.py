"""Checks of the data set on the login node, before anything is queued. Needs neither torch nor numpy."""

from __future__ import annotations

from hrdc_hpc.config import registry
from hrdc_hpc.config.schema import Data


def preflight(data: Data) -> None:
    """ValueError if the data set is plainly not there or wants other crops; fast: launch asks before it submits."""
    file = registry.module("hrdc_hpc.data.datasets", data.dataset.name)
    # some data sets need no evaluation split where data.holdout takes its place
    check = file.preflight if data.holdout is None else getattr(file, "preflight_train", file.preflight)
    check(data.dataset.options if data.dataset.options is not None else file.Options())
    refuse_staging(data)
    side: int | None = getattr(file, "SIDE", None)  # of small images in memory; encoded ones have sizes of their own
    if side is None:
        refuse_padded_crops(data, data.dataset.name)
    else:
        refuse_decoded_cache(data, data.dataset.name)
        refuse_resized_crops(data, data.dataset.name)
        refuse_other_sizes(data, (side, side), data.dataset.name)


def refuse_staging(data: Data) -> None:
    """ValueError where a data set is to be copied to the nodes that is not packed."""
    if data.staging is not None and data.dataset.name != "packed":
        raise ValueError(
            f"data.staging: only packed data sets are copied to the nodes; got {data.dataset.name}. Pack it (python -m"
            " hrdc_hpc.pack) and set data.dataset: {name: packed, root: PACK}, or leave data.staging out."
        )


def refuse_decoded_cache(data: Data, whose: str) -> None:
    """ValueError where small images in memory, which are pixels already, would have to be decoded."""
    if data.decoded_cache is not None:
        raise ValueError(f"data.decoded_cache: the images of {whose} lie in memory as pixels anyway. Leave it out.")


def refuse_padded_crops(data: Data, whose: str) -> None:
    """ValueError where crops with a border are wanted of encoded images; `whose` says which in the message."""
    if data.crop == "padded":
        raise ValueError(
            f"data.crop: 'padded' is for data sets of small images of one size (cifar10_lt, cifar100_lt); {whose}"
            " holds encoded images. Set data.crop: resized, or choose such a data set."
        )


def refuse_resized_crops(data: Data, whose: str) -> None:
    """ValueError where resized crops are wanted of small images in memory."""
    if data.crop != "padded":
        raise ValueError(
            f"data.crop: '{data.crop}' needs encoded images; {whose} holds small ones of one size. Set"
            " data.crop: padded (and data.crop_padding, 0 for no crop)."
        )


def refuse_other_sizes(data: Data, size: tuple[int, ...], whose: str) -> None:
    """ValueError where small images in memory, all of one `size` (height, width), would have to be resized."""
    height, width = size
    for key, side in (("image_size", data.image_size), ("eval_resize", data.eval_resize)):
        if (height, width) != (side, side):
            raise ValueError(
                f"data.{key}: {side}, but the images of {whose} are {height} x {width} pixels and are not"
                f" resized. Set data.{key}: {height}."
            )
