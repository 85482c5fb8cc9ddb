#!/usr/bin/env bash
# Set up .venv with the test tools and both models, then run the tests. Arguments go to pytest: tests/run.sh -k cli.
# Needs Python 3.11 or newer, and the network the first time. Works offline then.

source "$(dirname "${BASH_SOURCE[0]}")/../examples/setup.sh"

say "1/2 set up"
setup_tests

say "2/2 test"
workers="$(getconf _NPROCESSORS_ONLN)"
export OMP_NUM_THREADS=1
cd "$ROOT"
exec "$PY" -m pytest -n "$((workers < 8 ? workers : 8))" "$@"
