"""`python -m mmspec.check MODEL` is `mmspec check MODEL`."""

import sys

from ..cli import main

if __name__ == "__main__":
    sys.exit(main(["check", *sys.argv[1:]]))
