"""Published training runs of ResNet-50, and what is known or assumed of their GPUs and networks: plain values.

Sources: [blog] the table of interconnects and efficiencies in NVIDIA's post 'Sony breaks ResNet-50 training record with
NVIDIA V100 Tensor Core GPUs' (developer.nvidia.com/blog); [examples] NVIDIA's DeepLearningExamples, resnet50v1.5 for
PyTorch; [mlperf] MLPerf Training logs; [paper] the run's own paper, as its abstract has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hrdc_hpc.config.cluster import Device, Network

Size = tuple[int, int, float]
"""Nodes, GPUs of each, images of a GPU."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published figure."""

    name: str
    figure: float
    """Images per second and GPU, or with a base the efficiency, 0 to 1."""
    size: Size
    base: Size | None = None
    device: str
    network: str
    gradients: Literal["fp32", "bf16"] = "fp32"
    """bf16 stands for fp16 as well: 16 bits."""
    stack: Literal["eager", "fused"]
    """Whether batch norm, ReLU and addition are one kernel."""
    side: int = 224
    """Pixels."""
    role: Literal["predicted", "anchor"] = "predicted"
    known: str
    """What the source says of network, batch and GPU."""
    assumed: str
    reason: str = ""
    """Why the model is off, as far as can be guessed."""


DEVICES = {
    "H200": Device(name="H200", tflops=989.4, memory_gbyte_per_s=4800),
    "H100": Device(name="H100", tflops=989.4, memory_gbyte_per_s=3350),
    "A100-80": Device(name="A100-80", tflops=312, memory_gbyte_per_s=2039),
    "A100-40": Device(name="A100-40", tflops=312, memory_gbyte_per_s=1555),
    "V100": Device(name="V100", tflops=125, memory_gbyte_per_s=900),
    "P100": Device(name="P100", tflops=10.6, memory_gbyte_per_s=732, half=False),
    "P40": Device(name="P40", tflops=12, memory_gbyte_per_s=346),
}
"""Data sheets: dense half precision, of P100 fp32; of P40 fp32 with 16-bit activations, for it has no fast fp16."""

NETWORKS = {
    "8x NDR400": Network(gbit_per_node=3200, inside_gbyte_per_s=370),
    "8x HDR200": Network(gbit_per_node=1600, inside_gbyte_per_s=230),
    "4x HDR200": Network(gbit_per_node=800, inside_gbyte_per_s=230),
    "1x HDR100": Network(gbit_per_node=100, inside_gbyte_per_s=370),
    "25 GbE": Network(gbit_per_node=25, efficiency=0.8, latency_us=30, inside_gbyte_per_s=230),
    "50 GbE": Network(gbit_per_node=50, latency_us=30, inside_gbyte_per_s=30),
    "100 GbE": Network(gbit_per_node=100, inside_gbyte_per_s=10),
    "FDR": Network(gbit_per_node=56, inside_gbyte_per_s=10),
    "2x EDR": Network(gbit_per_node=200, inside_gbyte_per_s=60),
}

_ONE_GPU = "one node: no network"
_MLPERF = "MXNet, fused NHWC batch norm + add + ReLU, CUDA graphs, decoded cache [mlperf]"

ROWS: tuple[Published, ...] = (
    Published(
        name="MLPerf v4.0, 8x H200", figure=7946, size=(1, 8, 400), device="H200", network="8x NDR400", stack="fused",
        gradients="bf16", known=_MLPERF, assumed="gradients of 16 bits",
        reason="the roofline gives the H200 all of its larger bandwidth; the run gains 11 % over the H100 where memory"
        " is 43 % faster: something else limits it, such as its loading or kernels bound by arithmetic",
    ),
    Published(
        name="MLPerf v4.0, 8x H100", figure=7156, size=(1, 8, 400), device="H100", network="8x NDR400", stack="fused",
        gradients="bf16", known=_MLPERF, assumed="gradients of 16 bits; batch 400, as the H200 run",
    ),
    Published(
        name="MLPerf, 8x A100-80", figure=3571, size=(1, 8, 408), device="A100-80", network="8x HDR200", stack="fused",
        gradients="bf16", known=f"batch 408 per GPU in NVIDIA's public MLPerf v2.0 configuration; {_MLPERF}",
        assumed="that configuration; gradients of 16 bits",
        reason="arithmetic is a larger part on an A100, and small convolutions do not reach 80 % of the peak",
    ),
    Published(
        name="NVIDIA PyTorch example, 1 A100", figure=2470, size=(1, 1, 256), device="A100-80", network="8x HDR200",
        stack="eager", known="A100-80, AMP, PyTorch 21.03 [examples]", assumed="batch 256",
        reason="an older PyTorch (1.9); the eager traffic of the roofline leaves out buffers of kernels and conversions"
        " between formats of AMP; timm's 2,600 on an A100 is alike",
    ),
    Published(
        name="NVIDIA PyTorch example, 8 A100", figure=2078, size=(1, 8, 256), device="A100-80", network="8x HDR200",
        stack="eager", known="A100-80, AMP, PyTorch 21.03 [examples]", assumed="batch 256",
        reason="as on one, and eight GPUs share the host that decodes for them: the model was told that loading keeps"
        " up",
    ),
    Published(
        name="the same, 8 A100 over 1", figure=2078 / 2470, size=(1, 8, 256), base=(1, 1, 256), device="A100-80",
        network="8x HDR200", stack="eager", known="6.72 times on 8 GPUs [examples]", assumed="batch 256",
        reason="loading on the shared host, which the model was not told of; NVLink is not what limits it",
    ),
    Published(
        name="timm benchmark, 1 A100", figure=2600, size=(1, 1, 256), device="A100-40", network="8x HDR200",
        stack="eager", known="AMP, channels_last", assumed="A100-40, batch 256",
    ),
    Published(
        name="FFCV, 8x A100, 160 to 192 px", figure=3042, size=(1, 8, 128), device="A100-40", network="8x HDR200",
        stack="eager", side=176, known="8 A100, sides of 160 to 192 px", assumed="A100-40, batch 128, 176 px",
        reason="loading, evaluation between epochs and the smaller kernels of smaller images; the model scales by area",
    ),
    Published(
        name="MLPerf, 64 H100 at 50", figure=0.69, size=(8, 8, 50), base=(1, 8, 400), device="H100",
        network="8x NDR400", stack="fused", gradients="bf16", role="anchor",
        known="DGX H100 with Slurm; base 8 H100 at 400 [mlperf]", assumed="8 x NDR400, gradients of 16 bits",
        reason="anchor: 3.2 ms of a step follow from it",
    ),
    Published(
        name="MLPerf, 768 H100 at 42", figure=0.62, size=(96, 8, 42), base=(1, 8, 400), device="H100",
        network="8x NDR400", stack="fused", gradients="bf16", known="base 8 H100 at 400 [mlperf]",
        assumed="8 x NDR400, gradients of 16 bits",
    ),
    Published(
        name="MLPerf, 3,584 H100 at 16", figure=0.39, size=(448, 8, 16), base=(1, 8, 400), device="H100",
        network="8x NDR400", stack="fused", gradients="bf16", known="base 8 H100 at 400 [mlperf]",
        assumed="8 x NDR400, gradients of 16 bits",
    ),
    Published(
        name="Goyal et al., 256 P100", figure=0.90, size=(32, 8, 32), base=(1, 8, 32), device="P100", network="50 GbE",
        stack="eager", known="50 Gbit/s Ethernet [blog]; 8,192 images on 256 GPUs, base 8 GPUs [paper]",
        assumed="fp32 gradients; 8 GPUs a node, 30 GB/s inside; 30 us from node to node",
        reason="Ethernet with TCP, and a rank's steps on real data differ by more than 1 %",
    ),
    Published(
        name="Akiba et al., 1,024 P100", figure=0.80, size=(128, 8, 32), base=(1, 8, 32), device="P100", network="FDR",
        stack="eager", gradients="bf16", known="InfiniBand FDR [blog]; 32k images on 1,024 GPUs [paper]",
        assumed="one adapter a node, 8 GPUs a node over PCIe, 16-bit gradients, base one node",
        reason="ChainerMN packs all gradients and adds them up after backward; the model hides them behind half of"
        " compute",
    ),
    Published(
        name="Jia et al., 2,048 P40", figure=0.879, size=(256, 8, 32), base=(1, 8, 32), device="P40", network="100 GbE",
        stack="eager", gradients="bf16", known="100 Gbit/s Ethernet [blog]; 64k images on 2,048 GPUs [paper]",
        assumed="8 GPUs a node over PCIe, 16-bit gradients, base one node",
        reason="PCIe inside the node, and steps that differ by more than 1 % on 2,048 ranks",
    ),
    Published(
        name="Mikami et al., 1,088 V100", figure=0.916, size=(272, 4, 32), base=(1, 4, 32), device="V100",
        network="2x EDR", stack="fused", gradients="bf16", known="2 x InfiniBand EDR [blog]",
        assumed="4 GPUs a node, 32 images per GPU, 16-bit gradients, base one node",
        reason="their 2D torus pays more latencies than a tree, and LARS has work that is not in the model",
    ),
)  # fmt: skip

NOT_COMPARED = (
    "airbench94 and 96: time to an accuracy of a network of its own on CIFAR-10",
    "timm on an RTX 3090, channels_last 1.47 times NCHW: the layout is not in the model, which assumes channels_last",
    "LARS epochs at 3.2k, 32k and 57k images: optimisation, not speed",
    "JPEG decoding, restarts, checkpoints: not part of a step",
)

INSTEAD = (
    "How the estimates hide communication was not noted; the model hides it behind half of compute, and never that of"
    " the last bucket. Of a network's rate the model gives 85 % (25 GbE: 80 %) to all-reduces, and a ring among all"
    " ranks. Where they differ, neither was measured."
)
