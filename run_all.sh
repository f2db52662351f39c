#!/usr/bin/env bash
# ./run_all.sh [OPTIONS]   set up, run the mini profile of every notebook, redraw (./run_all.sh --help lists the options)
# ./run_all.sh audit --answers FILE   audit your own fine-tuning data
# ./run_all.sh site | test | bench | proofs | doctor | lab | claims --setting S | rejudge --judge M | distill --setting S --instructions F
set -euo pipefail
cd "$(dirname "$0")"

find_python() {
  if [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then echo "$CONDA_PREFIX/bin/python"; return; fi
  if [ -x .venv/bin/python ]; then echo .venv/bin/python; return; fi
  for name in python3.11 python3.12 python3; do
    if "$name" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      "$name" -m venv .venv && echo .venv/bin/python && return
    fi
  done
}

torch_in_bounds() {
  "$python" - 2>/dev/null <<'PY'
import sys, importlib.metadata as m
major, minor = map(int, m.version("torch").split(".")[:2])
import torch
sys.exit(not (2, 4) <= (major, minor) < (2, 15))
PY
}

pip_install() { "$python" -m pip install --quiet --disable-pip-version-check --no-deps "$@"; }

install() {
  local stamp="$1/.inoculation-lock" digest
  digest=$({ pwd; cat requirements.lock requirements-cuda.lock pyproject.toml; } | sha256sum)
  [ "$(cat "$stamp" 2>/dev/null)" != "$digest" ] || return 0
  local free_gb=$(($(df -Pk . | awk 'NR==2 {print $4}') / 1048576))
  [ "$free_gb" -ge 6 ] || { echo "./run_all.sh: $free_gb GB of disk are free, 6 GB are needed (12 GB with CUDA)" >&2; exit 2; }
  pip_install $(grep -E '^(pip|setuptools|wheel|packaging)==' requirements.lock)
  if torch_in_bounds; then
    echo "Keeping the torch that is already here. Installing the other packages (about 0.5 GB to download)."
  else
    echo "Installing PyTorch and the other packages: about 0.7 GB to download with a CPU build of PyTorch, over 3 GB with CUDA."
    echo "CPU only? Stop now, install the CPU build as PyTorch's own page says ($python -m pip install ...), start again: it is kept."
    pip_install "$(grep '^torch==' requirements.lock)"
    case $("$python" -c 'import importlib.metadata as m; print(m.version("torch"))') in
      *+cpu) ;;
      *) pip_install -r requirements-cuda.lock ;;
    esac
  fi
  grep -v '^torch==' requirements.lock | pip_install -r /dev/stdin
  pip_install --no-build-isolation -e .
  if git rev-parse --git-dir >/dev/null 2>&1; then
    git config filter.nbstripout.clean "'$python' -m nbstripout --extra-keys 'metadata.papermill cell.metadata.papermill'"
    git config filter.nbstripout.smudge cat
  fi
  echo "$digest" > "$stamp"
}

python=$(find_python)
[ -n "$python" ] || { echo "./run_all.sh: Python 3.11 or 3.12 is needed; neither is here (conda env create -f environment.yml makes one)" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' ||
  { echo "./run_all.sh: Python 3.11 or 3.12 is needed; $python is $("$python" --version)" >&2; exit 2; }
install "$("$python" -c 'import sys; print(sys.prefix)')"

case "${1:-}" in
  test) shift; exec "$python" -m pytest "$@" ;;
  bench) shift; exec "$python" bench/bench.py "$@" ;;
  proofs) shift; for proof in proofs/*.py; do echo "$proof"; "$python" "$proof"; done ;;
  doctor) shift; exec "$python" proofs/doctor.py "$@" ;;
  lab) shift; exec "$python" -m jupyter lab notebooks "$@" ;;
  *) exec "$python" -m inoculation "$@" ;;
esac
