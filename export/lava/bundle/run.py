"""Run the network of this folder in Lava's simulator; see README.md, or ``python run.py --help``."""

import sys

sys.dont_write_bytecode = True  # caches are not in the manifest, so the bundle would count as changed

from statten_lava.supervise import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
