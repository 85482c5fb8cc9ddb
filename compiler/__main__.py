"""`python -m llmc`: the command line without the `llmc` script on PATH."""

import sys

from llmc.cli import main

if __name__ == "__main__":
    sys.exit(main())
