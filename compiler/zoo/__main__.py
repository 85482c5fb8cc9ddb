"""`python -m llmc.zoo [FAMILY ...]`: the same as `llmc zoo`."""

import sys

from llmc.cli import main

if __name__ == "__main__":
    sys.exit(main(["zoo", *sys.argv[1:]]))
