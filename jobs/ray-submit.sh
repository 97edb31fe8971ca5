#!/usr/bin/env bash
# A Ray cluster that runs already, from a laptop: jobs/ray-submit.sh sends the job, follows it, checks the result.
# Ctrl-C leaves the job running; the same command comes back to it.
#
# Change:
address=${ADDRESS:-http://127.0.0.1:8265}  # the head's dashboard; in the cluster, or through a tunnel
input=${INPUT:-s3://BUCKET/photos}
out=${OUT:-s3://BUCKET/labels}
weights=${WEIGHTS:-sam-vit-h}              # or s3://BUCKET/sam.pth#sha256=HEX
workers=${WORKERS:-64}                     # at most so many; an autoscaler brings the machines
venv=${VENV:-.venv}                        # made if it is not there

set -euo pipefail
clone=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ ! -x $venv/bin/sam-amg ]]; then
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet "$clone"
fi
sam-amg() { "$venv/bin/sam-amg" "$@"; }

# --with-code: the machines have its dependencies (jobs/Dockerfile), and label with this very version.
sam-amg submit "$input" --out "$out" --address "$address" --weights "$weights" --workers "$workers" \
  --gpus-per-worker 1 --with-code
sam-amg status "$out"
sam-amg verify "$out"
