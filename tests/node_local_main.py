"""The example under msrun with a save directory of its own for each rank, as on node-local disks; see test_msrun.py.

Arguments: the directory above them, then the example's own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1] / "examples")


def main() -> int:
    from grpo_arithmetic import main as example

    top, *arguments = sys.argv[1:]
    save = Path(top) / f"node_{os.environ['RANK_ID']}"
    source = ["--actor_checkpoint_path", str(save / "train")] if "--resume_training" in arguments else []
    return int(example.main([*arguments, *source, "--save_checkpoint_dir", str(save)]))


if __name__ == "__main__":
    sys.exit(main())
