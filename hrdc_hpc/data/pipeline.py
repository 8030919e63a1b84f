"""The DALI pipeline: encoded bytes and pixel geometry in, uint8 images out. Compute nodes only.

One definition serves CPU and GPU. DALI draws nothing and keeps no state: what it is fed decides what comes out,
whatever the number of threads and however far it runs ahead.

Axis legend: B images of a batch, S side of the output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.tensors import TensorCPU, TensorListCPU

from hrdc_hpc.config.schema import Loader
from hrdc_hpc.data.index import Bytes

DECODE_ERRORS = (RuntimeError, IndexError, ValueError)
"""What DALI raises for images that it cannot decode."""
_DAMAGED = ("Failed to decode", "nvImageCodec failure", "Invalid sample_type")
"""What its texts for damaged images begin with; the last is for a precision that no image has."""

OTHER_SIZE = "its size is not the one that was indexed"
DAMAGED = "damaged, or not an image"


def decode_reason(error: Exception) -> str:
    """What one of DECODE_ERRORS, raised for a single image, says of it."""
    operator, _, reason = str(error).rpartition("encountered:")
    text = reason.strip().splitlines()
    if "fn.reshape`" in operator:  # see checked
        return OTHER_SIZE
    if not text or text[0].startswith(_DAMAGED):
        return DAMAGED
    return text[0]


_FAR_OFF = 1 << 30
"""More bytes than an image has, and no divisor of their number."""

Until = Literal["whole", "crop", "resize", "end"]
"""The whole image decoded and no more, the crop decoded, the crop resized; the images as they are trained on."""
_FED: Mapping[Until, tuple[str, ...]] = {
    "whole": ("indexed",),
    "crop": ("indexed", "anchor", "shape"),
    "resize": ("indexed", "anchor", "shape"),
}


@dataclass(frozen=True)
class Inputs:
    """One batch for the pipeline. Its memory must stay as it is until the batch has come out."""

    encoded_B: Any
    """DALI list of B byte arrays, see `pack`."""
    geometry: Mapping[str, NDArray[Any]]
    """indexed: int32 [B, 3], the images' height, width and 3.

    training: anchor, shape int32 [B, 2], flip int32 [B]; evaluation: size float32 [B, 2], anchor int32 [B, 2].
    """


def pack(encoded_B: Sequence[Bytes]) -> Any:
    """Wrap byte arrays for DALI without copying them: about 1.6 us each. Meant for the prefetch thread."""
    wrap: Any = TensorListCPU  # its stub does not know `contiguous`, whose default would copy everything into one piece
    return wrap([TensorCPU(array) for array in encoded_B], None, contiguous=False)


def external(name: str, dtype: Any, ndim: int) -> Any:
    """An input that is fed from outside, without a copy."""
    return fn.external_source(name=name, dtype=dtype, ndim=ndim, no_copy=True)


def checked(encoded: Any, indexed: Any) -> Any:
    """Pass encoded images on once their headers were read and tell the indexed size: int32 [3] of height, width, 3.

    In runs of more than 4 * (threads + 1) images DALI 2.4's decoder loses an error that it meets while it prepares an
    image, such as a damaged header or a window outside of it, and decodes what it last had in that place: another
    image, or memory that is no longer there. Here such errors come before the decoder has begun; all but one, a JPEG's
    impossible precision, for which see frames.py.
    """
    shape = fn.peek_image_shape(encoded, dtype=types.INT32, adjust_orientation=False, image_type=types.RGB)
    # [-1, 1, 1], all bytes, where both agree; else a shape that no number of bytes has
    wanted = (shape != indexed) * _FAR_OFF + types.Constant(np.array([-1, 1, 1], np.int32), device="cpu")
    return fn.reshape(encoded, shape=wanted)


def decode(encoded: Any, *window: Any, hardware: float | None) -> Any:
    """Decode to RGB, whole or, given anchor and shape, only the window; `hardware` as in _build."""
    settings: dict[str, Any] = {"device": "cpu", "output_type": types.RGB, "adjust_orientation": False}
    if hardware is not None:
        # fancy upsampling of the chroma is what libjpeg, and so the CPU, does
        settings |= {"device": "mixed", "hw_decoder_load": hardware, "jpeg_fancy_upsampling": True}
    if window:
        return fn.decoders.image_slice(encoded, *window, axis_names="HW", **settings)
    return fn.decoders.image(encoded, **settings)


def _build(
    *,
    training: bool,
    image_size: int,
    batch: int,
    device: torch.device,
    threads: int,
    depth: int,
    hardware: float | None,
    until: Until = "end",
) -> Pipeline:
    """Build the pipeline; `hardware`: JPEGs are decoded on the GPU, this share of them by its engines; None: not.

    `until`: where a training pipeline ends, for measurements.
    """
    on_gpu = device.type == "cuda"
    index = (device.index if device.index is not None else torch.cuda.current_device()) if on_gpu else None
    pipeline = Pipeline(batch_size=batch, num_threads=threads, device_id=index, prefetch_queue_depth=depth)
    with pipeline:
        encoded = checked(external("encoded", types.UINT8, 1), external("indexed", types.INT32, 1))
        anchor = external("anchor", types.INT32, 1) if until != "whole" else None
        if training:
            window = () if until == "whole" else (anchor, external("shape", types.INT32, 1))
            images = decode(encoded, *window, hardware=hardware)
            size: Any = [image_size, image_size]
        else:
            images = decode(encoded, hardware=hardware)
            size = external("size", types.FLOAT, 1)
        if on_gpu and hardware is None:
            images = images.gpu()
        if until in ("end", "resize"):
            images = fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        if training and until == "end":
            images = fn.flip(images, horizontal=external("flip", types.INT32, 0))
        elif not training:
            images = fn.slice(images, start=anchor, shape=[image_size, image_size], axis_names="HW")
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline


def check_decoder(loader: Loader, device: torch.device) -> None:
    """ValueError where the GPU is to decode and the rank has none."""
    if loader.decoder == "gpu" and device.type != "cuda":
        raise ValueError("data.loader.decoder: gpu, but this rank computes on the CPU; allowed here: auto, cpu")


class Decoder:
    """A running pipeline: `push` batches of at most `batch` images, `pop` their images in the same order.

    Up to `depth` batches may be under way. Where the first `pop` comes before `depth` batches were pushed, the next
    `push` must wait until all of them have come out. After an error of `pop` only `close` is of use.
    """

    def __init__(
        self,
        *,
        training: bool,
        image_size: int,
        batch: int,
        device: torch.device,
        threads: int,
        depth: int,
        loader: Loader,
        until: Until = "end",
    ) -> None:
        """Build it; of one that ends early `skip` takes the batches out."""
        self.depth = depth
        self._device = device
        self._pipeline = _build(
            training=training,
            image_size=image_size,
            batch=batch,
            device=device,
            threads=threads,
            depth=self.depth,
            hardware=loader.hardware if device.type == "cuda" and loader.decoder != "cpu" else None,
            until=until,
        )
        self._fed = _FED.get(until)
        self._shape = (image_size, image_size, 3)
        self._side: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]  # torch's
        self._first: list[Inputs] = []
        self._started = False
        self._fillers = 0
        self._before_fillers = 0
        """Batches that must come out before the fillers do."""

    def push(self, inputs: Inputs) -> None:
        """Begin a batch."""
        if not self._started:
            self._first.append(inputs)
            if len(self._first) == self.depth:
                self._start()
            return
        assert not (self._fillers and self._before_fillers), "a batch that was not taken out is in front of the fillers"
        while self._fillers:
            self._pipeline.share_outputs()
            self._pipeline.release_outputs()
            self._fillers -= 1
        self._feed(inputs)
        self._pipeline.schedule_run()

    def _start(self) -> None:
        # DALI's first run asks for `depth` batches at once; where there are fewer, the last is run again and dropped
        self._before_fillers = len(self._first)
        self._fillers = self.depth - self._before_fillers
        for number in range(self.depth):
            self._feed(self._first[min(number, len(self._first) - 1)])
        self._started = True
        self._pipeline.schedule_run()
        self._first = []

    def _feed(self, inputs: Inputs) -> None:
        self._pipeline.feed_input("encoded", inputs.encoded_B)
        for name, values in inputs.geometry.items():
            if self._fed is None or name in self._fed:
                self._pipeline.feed_input(name, values)

    def pop(self) -> torch.Tensor:
        """Wait for the oldest batch: uint8 [B, S, S, 3] on the device, in memory of its own. Raises DECODE_ERRORS."""
        if not self._started:
            self._start()
        (output,) = self._pipeline.share_outputs()
        images = (
            self._copy_from_gpu(output) if self._side is not None else torch.from_numpy(np.array(output.as_array()))
        )
        self._release()
        return images

    def skip(self) -> None:
        """Wait for the oldest batch and drop it. Raises DECODE_ERRORS."""
        if not self._started:
            self._start()
        self._pipeline.share_outputs()
        self._release()

    def _release(self) -> None:
        self._pipeline.release_outputs()
        self._before_fillers = max(0, self._before_fillers - 1)

    def _copy_from_gpu(self, output: Any) -> torch.Tensor:
        from nvidia.dali.plugin.pytorch import feed_ndarray

        # On a stream of its own: DALI may reuse its buffer as soon as the copy is done, and to wait for that must not
        # mean to wait for the training step that is queued on the current stream.
        assert self._side is not None
        with torch.cuda.stream(self._side):
            images = torch.empty((len(output), *self._shape), dtype=torch.uint8, device=self._device)
            feed_ndarray(output.as_tensor(), images, cuda_stream=self._side)
        self._side.synchronize()
        images.record_stream(torch.cuda.current_stream(self._device))
        return images

    def close(self) -> None:
        """End its threads and free its memory."""
        del self._pipeline
