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
# The quick tests share no port, folder or clock, so they run side by side, and so do the slow ones that only compute; the
# other slow ones measure time, one by one. Arguments may leave one of the three with nothing to run (status 5).
tests() {
  local status=0
  printf '== pytest %s\n' "$*"
  python -m pytest -q "$@" || status=$?
  [ $status = 0 ] || { [ $status = 5 ] && [ $narrowed = yes ]; } || exit $status
}
narrowed=$([ "$mode" = full ] && [ $# -gt 0 ] && echo yes || echo no)
side_by_side=(-n auto --maxprocesses 4)
case "$mode" in
  quick) tests "${side_by_side[@]}" --dist loadfile -m "not slow and not interop" "$@" ;;
  full)
    tests "${side_by_side[@]}" --dist loadfile -m "not slow and not interop" "$@"
    tests "${side_by_side[@]}" --dist worksteal -m "slow and computes and not interop" "$@"
    tests -m "slow and not computes and not interop" "$@" ;;
  interop)
    [ $# -gt 0 ] || python -m tests.interop.table --clear
    status=0
    check python -m pytest -q -m interop "$@" || status=$?
    python -m tests.interop.table   # every row, the poor ones too
    exit $status ;;
esac
