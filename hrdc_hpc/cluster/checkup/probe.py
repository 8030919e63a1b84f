"""Tries torch and DALI; prints a JSON line for each: `python -m hrdc_hpc.cluster.checkup.probe`, called by deep.py."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from typing import Any

_SIDE = 64


def main() -> None:
    """Try one after the other; a crash leaves the lines of those before."""
    for stage, attempt in (("torch", _torch), ("dali", _dali)):
        sys.stdout.write(json.dumps({stage: _tried(attempt)}) + "\n")
        sys.stdout.flush()


def _tried(attempt: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        return attempt() | {"seconds": time.perf_counter() - start}
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the answer
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def _torch() -> dict[str, Any]:
    """Version, CUDA and GPUs; a product of small whole numbers must be exact on each of them."""
    import torch

    told: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda, "devices": []}
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]  # torch has no annotations there
        except (RuntimeError, AssertionError) as error:
            told["cuda_error"] = str(error).splitlines()[0]
        return told
    for number in range(torch.cuda.device_count()):
        ones = torch.ones(_SIDE, _SIDE, device=f"cuda:{number}")
        if float((ones @ ones).sum()) != _SIDE**3:
            raise RuntimeError(f"GPU {number} multiplies wrongly")
        told["devices"].append(torch.cuda.get_device_name(number))
    return told


def _dali() -> dict[str, Any]:
    """Version, and one decoded JPEG."""
    import numpy as np
    from nvidia import dali
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(np.full((_SIDE, _SIDE, 3), 200, np.uint8)).save(content, "JPEG")
    encoded = np.frombuffer(content.getvalue(), np.uint8)
    on_gpu = _gpus() > 0
    pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=0 if on_gpu else None)
    with pipeline:
        files = dali.fn.external_source(lambda: [encoded])
        pipeline.set_outputs(dali.fn.decoders.image(files, device="mixed" if on_gpu else "cpu"))
    pipeline.build()
    (images,) = pipeline.run()
    pixels = np.asarray((images.as_cpu() if on_gpu else images).at(0))
    if pixels.shape != (_SIDE, _SIDE, 3) or abs(float(pixels.mean()) - 200) > 2:
        raise RuntimeError(f"a grey JPEG was decoded to shape {pixels.shape}, mean {pixels.mean():.0f}")
    return {"version": dali.__version__, "device": "GPU" if on_gpu else "CPU"}


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


if __name__ == "__main__":
    main()
