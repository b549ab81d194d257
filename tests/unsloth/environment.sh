#!/usr/bin/env bash
# Makes a virtual environment that holds truetune and Unsloth, without a GPU:
#
#   tests/unsloth/environment.sh newest DIR     Unsloth on top of .venv, which stays as it is; its pins ignored
#   tests/unsloth/environment.sh resolved DIR   the versions pip finds for truetune[unsloth]
#
# PYTHON (python3) and TORCH (torch==2.13.0) are those of the Makefile. Done at once where DIR is up to date.
set -euo pipefail

PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-torch==2.13.0}
UNSLOTH=2026.10.9
# PyPI's builds of these need CUDA: triton and xformers run on nothing else, and Unsloth refuses to be imported beside
# a torchvision whose operators do not load.
NEEDS_GPU='triton xformers torchvision'

main() {
    [[ $# -eq 2 && $1 =~ ^(newest|resolved)$ ]] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
    local kind=$1 repository
    mkdir -p "$2"
    directory=$(cd "$2" && pwd)
    repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
    stamp=$directory/.complete-$kind
    cd "$repository"
    is_complete && return
    make_venv
    "make_$kind"
    touch "$stamp"
}

is_complete() {
    local source
    for source in pyproject.toml constraints.txt tests/unsloth/environment.sh; do
        [[ $stamp -nt $source ]] || return 1
    done
}

make_venv() {
    if [[ -n $(ls -A "$directory") && ! -f $directory/pyvenv.cfg ]]; then
        echo "$directory holds files and is no virtual environment: name another directory" >&2
        exit 1
    fi
    "$PYTHON" -m venv --clear "$directory"
    # From 23.3 on a dry run reads a package's metadata where the index has it, and leaves the package.
    install 'pip>=23.3'
}

install() {
    "$directory/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

make_newest() {
    # What is not in the new environment is taken from .venv, by a path file that also reads the path files there.
    echo "import site; site.addsitedir('$(site_packages .venv/bin/python)')" \
        > "$(site_packages "$directory/bin/python")/main.pth"
    install --constraint constraints.txt --no-deps sentencepiece requests "unsloth==$UNSLOTH" "unsloth_zoo==$UNSLOTH"
}

site_packages() {
    "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
}

make_resolved() {
    local report=$directory/resolution.json versions=$directory/resolution.txt
    install $TORCH
    # Without the pin pip may take another torch, and with it gigabytes of CUDA.
    "$directory/bin/python" -c 'from importlib.metadata import version as v; print("torch==" + v("torch"))' > "$versions"
    install --constraint "$versions" --dry-run --report "$report" --editable '.[unsloth]'
    pins "$report" >> "$versions"
    install --no-deps --requirement "$versions"
    install --no-deps --editable .
    install --constraint "$versions" 'pytest>=8.4' 'pytest-timeout>=2.4' 'tensorboard>=2.18'
}

# Prints name==version of all that the report would install, without truetune and what needs a GPU.
pins() {
    "$directory/bin/python" - "$1" truetune $NEEDS_GPU <<'PYTHON'
import json
import sys

report, *left_out = sys.argv[1:]
with open(report, encoding="utf-8") as file:
    found = [item["metadata"] for item in json.load(file)["install"]]
for package in found:
    if package["name"].lower() not in left_out:
        print(f"{package['name']}=={package['version']}")
PYTHON
}

main "$@"
