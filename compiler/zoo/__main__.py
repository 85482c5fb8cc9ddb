"""`python -m llmc.zoo [FAMILY ...]`: the table of the zoo."""

import argparse
import os
import sys
from pathlib import Path

from llmc.zoo.families import families
from llmc.zoo.table import COLUMNS, SECONDS, Row, cells, run_zoo, summary, to_json


def main() -> int:
    """Run the families named on the command line; exit code 1 if any failed."""
    parser = argparse.ArgumentParser("llmc.zoo", description="Compile and check a tiny model of each causal-LM family.")
    parser.add_argument("family", nargs="*", help="families; default: all that transformers maps")
    parser.add_argument("--list", action="store_true", help="print the names of the families and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit of one family")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(families()))
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print("\t".join(COLUMNS))
    rows = run_zoo(arguments.family, seconds=arguments.seconds, progress=_print_row)
    print(", ".join(f"{count} {verdict}" for verdict, count in summary(rows).items()))
    if arguments.json:
        arguments.json.write_text(to_json(rows))
    return int(any(row.verdict == "failed" for row in rows))


def _print_row(row: Row) -> None:
    print("\t".join(str(cell) for cell in cells(row)).splitlines()[0][:300], flush=True)


if __name__ == "__main__":
    sys.exit(main())
