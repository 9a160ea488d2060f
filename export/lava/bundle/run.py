"""Run the network of this folder in Lava's simulator; see README.md, or ``python run.py --help``."""

import sys

from statten_lava.supervise import main

if __name__ == "__main__":
    sys.exit(main())
