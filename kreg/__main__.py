"""``python -m kreg``: the command ``kreg``."""

import sys

from kreg.cli import main

if __name__ == "__main__":
    sys.exit(main())
