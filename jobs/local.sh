#!/usr/bin/env bash
# One machine, from nothing to masks: jobs/local.sh PHOTOS LABELS. Run it again to go on after anything.
#
# Change:
input=${1:-photos}              # folder, pattern or list of images; URLs too
out=${2:-labels}                # where the masks go
weights=${WEIGHTS:-mobile-sam}  # sam-vit-h where there is a GPU
workers=${WORKERS:-}            # empty: as many as there is room for
venv=${VENV:-.venv}             # made if it is not there

set -euo pipefail
clone=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ ! -x $venv/bin/sam-amg ]]; then
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet "$clone"
fi
sam-amg() { "$venv/bin/sam-amg" "$@"; }

sam-amg run "$input" --out "$out" --weights "$weights" --runner ray ${workers:+--workers "$workers"}
sam-amg verify "$out"
sam-amg show "$out"
