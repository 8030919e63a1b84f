"""Pack a data set, as `python -m hrdc_hpc.pack` does: for batch scripts of one's own, from any folder."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).absolute().parents[1]))
    from hrdc_hpc.pack.__main__ import main

    sys.exit(main())
