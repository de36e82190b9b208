#!/usr/bin/env bash
# A three-node trimq cluster on this machine: sets up what it needs, starts it, breaks it on request.
#
#   deploy/run3.sh [up] [--groups 3] [--dir DIR] [--base-port N] [--flush sync|async] [--no-demo]
#   deploy/run3.sh down | status [--json] | logs [NODE] | wipe
#   deploy/run3.sh kill NODE|leader [--group G]
#   deploy/run3.sh stop NODE | start NODE | pause NODE | resume NODE
#   deploy/run3.sh drill [--rounds 20] [--fault kill|pause|restart|partition|disk-full|...] [--json]
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/setup-venv.sh"
setup_venv run
exec "$here/../.venv/bin/python" -m trimq.testing.run3 --root "$here/.." "$@"
