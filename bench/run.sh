#!/usr/bin/env bash
# Measure trimq and its peers on this machine, side by side; samples are written as they come (.bench/results.jsonl).
#
#   bench/run.sh --all [--minutes 20] [--resume]   every goal; writes docs/performance.md and its plots
#   bench/run.sh --quick                           does the harness work?
#   bench/run.sh --only STEP [--only STEP ...]     some steps
#   bench/run.sh --compare A B                     two commits (`.`: the working tree) or two settings key=value
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/setup-venv.sh
setup_venv dev
.venv/bin/python -c 'import matplotlib, psutil, nats, confluent_kafka, aio_pika' 2>/dev/null ||
  .venv/bin/python -m pip install -qq --disable-pip-version-check --editable '.[bench]' ||
  echo "Not every peer's client could be installed; what is missing is left out and named." >&2
exec .venv/bin/python -m bench "$@"
