"""The exit codes of a training process and of `launch`, in one table. Torch-free.

| code | meaning                                   | who acts on it                                                 |
|------|-------------------------------------------|----------------------------------------------------------------|
| 0    | done: the run folder holds the result     | nobody needs to; the batch script ends the rest of a chain     |
| 1    | failed: the world (disk, network, a bug)  | the batch script requeues, with a cap                          |
| 70   | hung: no step for long, stacks are dumped | the batch script requeues, with a cap                          |
| 71   | this node is bad (GPU gone, ECC error)    | the batch script requeues, away from that node, with a cap     |
| 75   | stopped early and saved: start me again   | rank 0 has asked SLURM to requeue, else the batch script does  |
| 78   | do not requeue: the same would come again | a person: config, data, another writer, caps used up; or it    |
|      |                                           | was cancelled, or stopped by the file `stop`                   |
| 130  | `launch` was left with Ctrl-C             | nobody: jobs go on; a local one of --wait saves and ends       |

The batch script goes by what the run folder tells (teardown.py; the caps: policy.py), rank 0 looks at the caps again
at each start, which SLURM may have made by itself. The batch script ends with srun's code, which is 137 where a rank
was killed: requeued like 1. Where a job may not be requeued, the next link of a chain goes on, and outside SLURM
whoever gives the same command again. SLURM itself acts on none of them but 0: the job's state is COMPLETED or FAILED.
70, 71, 75 and 78 are EX_SOFTWARE, EX_OSERR, EX_TEMPFAIL and EX_CONFIG of sysexits.h.
"""

from __future__ import annotations

from enum import IntEnum

from hrdc_hpc.record.health import BadNode
from hrdc_hpc.record.lease import LeaseHeld, LeaseLost


class Exit(IntEnum):
    """What a process's exit code says to whoever started it."""

    DONE = 0
    FAILED = 1
    HUNG = 70
    BAD_NODE = 71
    REQUEUE = 75
    DO_NOT_REQUEUE = 78
    LEFT = 130


_NODE_FAULTS = ("uncorrectable ECC error", "hardware stack error", "no CUDA-capable device", "NVLink error")
"""In the message of a CUDA error: the device, not the program."""


def of_error(error: BaseException) -> Exit:
    """Return the exit code for an exception that ended training.

    ValueError is the user's (config, data) and would come again; a lease that another writer holds is not to be fought
    over; everything else is the world's.
    """
    if isinstance(error, ValueError | LeaseHeld | LeaseLost):
        return Exit.DO_NOT_REQUEUE
    if isinstance(error, BadNode):
        return Exit.BAD_NODE
    if isinstance(error, RuntimeError) and any(fault in str(error) for fault in _NODE_FAULTS):
        return Exit.BAD_NODE
    return Exit.FAILED
