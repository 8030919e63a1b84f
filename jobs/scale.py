"""Write the report of a scaling study in a batch job: `python jobs/scale.py STUDY [--predict 16,32]`, or by srun."""

import os
import sys
from pathlib import Path

if __name__ == "__main__" and os.environ.get("SLURM_PROCID", "0") == "0":  # srun starts one for each task
    # the study's own code, which its runs ran; what lies beside this file answers a wrong argument
    sys.path[:0] = [str(Path(*sys.argv[1:2], "code").absolute()), str(Path(__file__).absolute().parents[1])]
    from hrdc_hpc.scaling.__main__ import main

    sys.exit(main(["report", *sys.argv[1:]]))
