"""`python -m mmspec` is the command `mmspec`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
