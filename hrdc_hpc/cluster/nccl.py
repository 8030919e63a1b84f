"""What a network between nodes wants of NCCL and of the libraries under it; `cluster.nccl` names one. Torch-free.

NCCL finds the network by itself. A preset makes it an error where it would not be found (a job that silently runs over
the management network takes ten times as long), and sets what its vendor says has to be set. Sources:
[NCCL]  NVIDIA, NCCL user guide, Environment Variables: docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
[OFI]   libfabric, fabric(7): ofiwg.github.io/libfabric/main/man/fabric.7.html
[AWS]   aws-ofi-nccl wiki, Environment Variables: github.com/aws/aws-ofi-nccl/wiki/Environment-Variables
[CXI]   libfabric, fi_cxi(7): ofiwg.github.io/libfabric/main/man/fi_cxi.7.html
[HPE]   HPE, ccl_env.sh: github.com/HewlettPackard/shs-ccl-docs
[TORCH] PyTorch, torch.distributed, Choosing the network interface to use: pytorch.org/docs/stable/distributed.html
"""

from __future__ import annotations

from hrdc_hpc.config.cluster import Cluster

_PRESETS: dict[str, dict[str, str]] = {
    "none": {},
    "infiniband": {
        "NCCL_NET": "IB",  # [NCCL] no falling back to sockets
    },
    "ethernet": {
        "NCCL_NET": "Socket",  # [NCCL]
        "NCCL_IB_DISABLE": "1",  # [NCCL] neither InfiniBand nor RoCE, of a card that is there and not cabled
    },
    "efa": {
        # [OFI] [AWS] the plugin takes this provider or none. FI_EFA_USE_DEVICE_RDMA is left out: fi_efa(7) says that 1
        # ends the program where the instance has no RDMA, and that unset it is used where it is there
        "FI_PROVIDER": "efa",
    },
    "slingshot": {
        # [HPE], all of them; what they do: [CXI], [NCCL]. NCCL_NET is left out: HPE warns of it on a single node
        "FI_MR_CACHE_MONITOR": "userfaultfd",
        "FI_CXI_DISABLE_HOST_REGISTER": "1",
        "FI_CXI_DEFAULT_CQ_SIZE": "131072",
        "FI_CXI_DEFAULT_TX_SIZE": "2048",
        "FI_CXI_RDZV_PROTO": "alt_read",
        "FI_CXI_RDZV_EAGER_SIZE": "0",
        "FI_CXI_RX_MATCH_MODE": "hybrid",
        "NCCL_CROSS_NIC": "1",
        "NCCL_NET_GDR_LEVEL": "PHB",
        "NCCL_SOCKET_IFNAME": "hsn",  # a prefix: hsn0, hsn1 ...
    },
}
_SRUN = {"slingshot": ["--network=disable_rdzv_get"]}  # [HPE] needed by FI_CXI_RDZV_PROTO=alt_read


def variables(cluster: Cluster) -> dict[str, str]:
    """Return the variables of the preset and of the interface."""
    interface = cluster.network_interface
    chosen = {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface} if interface else {}  # [NCCL] [TORCH]
    return _PRESETS[cluster.nccl] | chosen


def srun_options(cluster: Cluster) -> list[str]:
    """Return what the preset asks of srun."""
    return _SRUN.get(cluster.nccl, [])
