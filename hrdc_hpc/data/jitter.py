"""Applies colour jitter to images on the device. Compute nodes only; needs no DALI.

For the factors b (brightness), c (contrast) and s (saturation) of an image, with grey = .299 R + .587 G + .114 B:

    out = b * (c * (s * image + (1 - s) * grey) + (1 - c) * mean of grey over the image), rounded, clipped to 0 ... 255

These are torchvision's adjust_brightness, adjust_contrast and adjust_saturation one after another, but for the
rounding and clipping after each: without those the three commute, so no order is drawn, and one pass over the pixels
does what takes three. It is done on the device rather than in DALI: there one formula serves decoded and resident
images and CPU and GPU, a GPU's step fuses it with the normalisation, and the result is exact. DALI's contrast is about
a fixed grey instead of the image's own, and its kernels differ between CPU and GPU.

The mean is a sum of whole numbers and everything else is element by element: an image comes out the same in any batch,
on any number of ranks.

Axis legend: B images of this rank's batch, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hrdc_hpc.data.batch import Pixels, Render

FACTORS = "factors"
"""Pixels' key of the factors, float32 [B, 3]."""


def jitter(images_BHWC: Tensor, factors_B3: Tensor) -> Tensor:
    """Return uint8 images [B, H, W, 3] in other colours; see the formula above. Does not wait for the device."""
    b_B11, c_B11, s_B11 = factors_B3[:, :, None, None].unbind(1)
    height, width = images_BHWC.shape[1:3]
    mean_B3 = images_BHWC.sum((1, 2), dtype=torch.int64).double() / (height * width)
    mean_B11 = _grey(mean_B3).float()[:, None, None]
    images = images_BHWC.float()
    # the same for the three channels
    rest_BHW = _grey(images) * (b_B11 * c_B11 * (1 - s_B11)) + b_B11 * (1 - c_B11) * mean_B11
    images *= (b_B11 * c_B11 * s_B11)[..., None]
    images += rest_BHW[..., None]
    return images.clamp_(0, 255).round_().to(torch.uint8)


def _grey(rgb: Tensor) -> Tensor:
    red, green, blue = rgb.unbind(-1)
    return red * 0.299 + green * 0.587 + blue * 0.114


def jittered(render: Render) -> Render:
    """Return a Render that jitters what `render` makes, by the factors among the Pixels."""

    def render_jittered(pixels: Pixels) -> Tensor:
        return jitter(render(pixels), pixels[FACTORS])

    return render_jittered
