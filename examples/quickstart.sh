#!/usr/bin/env bash
# From a fresh checkout to generated text: set up .venv, compile SmolLM2-135M into an artifact, run the artifact.
# Needs Python 3.11 or newer, and the network the first time. Run it again at will; it works offline then.

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

say "1/3 set up"
setup_llmc

say "2/3 build $MODELS/smollm2.llmc"
"$PY" -m llmc build "$SMOLLM2" -o "$MODELS/smollm2.llmc" --force

say "3/3 run it"
"$PY" -m llmc run "$MODELS/smollm2.llmc" --chat --temperature 0 --max-new-tokens 48 "What is the capital of France?"
