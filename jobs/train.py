"""Train a prepared run without submitit: `srun python jobs/train.py RUN` in a batch script, or as a single process."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # every attempt runs the run's own snapshot; what lies beside this file answers a wrong argument
    sys.path[:0] = [str(Path(*sys.argv[1:2], "code").absolute()), str(Path(__file__).absolute().parents[1])]
    from hrdc_hpc.cluster.task import main

    main(sys.argv[1:])
