#!/usr/bin/env bash
# The test command. Sets up what it needs on a machine with nothing but Python 3.11+.
#
#   tests/run.sh            everything that needs no foreign client   (under 20 minutes)
#   tests/run.sh --quick    format, lint, types, contracts, the quick tests   (under 3 minutes)
#   tests/run.sh --interop  the foreign clients, each from its package registry
#   further arguments go to pytest: tests/run.sh --quick tests/store -k torn
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. deploy/setup-venv.sh
setup_venv dev
PATH="$PWD/.venv/bin:$PATH"

mode=full
case "${1:-}" in
  --quick) mode=quick; shift ;;
  --interop) mode=interop; shift ;;
esac

check() { printf '== %s\n' "$*"; "$@"; }

if [ "$mode" != interop ]; then
  check ruff format --check .
  check ruff check .
  check mypy
  check lint-imports
fi
# The quick tests share no port, folder or clock, so they run side by side; the slow ones measure time, one by one.
quick() { check python -m pytest -q -n auto --maxprocesses 4 --dist loadfile -m "not slow and not interop" "$@"; }
case "$mode" in
  quick)   quick "$@" ;;
  full)
    quick "$@"
    check python -m pytest -q -m "slow and not interop" "$@" ;;
  interop)
    [ $# -gt 0 ] || python -m tests.interop.table --clear
    status=0
    check python -m pytest -q -m interop "$@" || status=$?
    python -m tests.interop.table   # every row, the poor ones too
    exit $status ;;
esac
