#!/usr/bin/env bash
# Makes a virtual environment DIR that holds LLaMA-Factory, for bench/engine.py --llamafactory DIR, without a GPU:
#
#   bench/llamafactory.sh DIR
#
# PYTHON (python3) and TORCH (torch==2.13.0) are those of the Makefile. Done at once where DIR is complete.
set -euo pipefail

PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-torch==2.13.0}
LLAMAFACTORY=0.9.5

main() {
    [[ $# -eq 1 ]] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
    local directory=$1 complete=$1/.complete-$LLAMAFACTORY
    if [[ -f $complete ]]; then return; fi
    if [[ -d $directory && -n $(ls -A "$directory") && ! -f $directory/pyvenv.cfg ]]; then
        echo "$directory holds files and is no virtual environment: name another directory" >&2
        exit 1
    fi
    "$PYTHON" -m venv --clear "$directory"
    install "$TORCH"
    # Without the pin pip may take another torch, and with it gigabytes of CUDA.
    "$directory/bin/python" -c 'from importlib.metadata import version as v; print("torch==" + v("torch"))' \
        > "$directory/torch.txt"
    install --constraint "$directory/torch.txt" "llamafactory==$LLAMAFACTORY"
    keep_to_cpu
    touch "$complete"
}

install() {
    "$directory/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

# PyPI's torchvision and torchaudio are built for CUDA. LLaMA-Factory does without the first; it imports the second,
# which is content without its compiled part.
keep_to_cpu() {
    "$directory/bin/python" -m pip uninstall --quiet --yes torchvision
    if ! "$directory/bin/python" -c 'import torchaudio' 2> /dev/null; then
        rm -f "$directory"/lib/python3*/site-packages/torchaudio/lib/*.so
        "$directory/bin/python" -c 'import torchaudio'
    fi
}

main "$@"
