# Sourced by run3.sh and tests/run.sh: makes .venv beside pyproject.toml and installs trimq into it.
# Needs Python 3.11+ and nothing else; says what to install where even that is not enough.
# Usage: setup_venv [dev]      ("dev" adds the tools that the tests need)

find_python() {
  local candidate
  for candidate in "${TRIMQ_PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return 0
    fi
  done
  echo "trimq needs Python 3.11 or newer; none was found on PATH. Install it, or name it in TRIMQ_PYTHON." >&2
  return 1
}

make_venv() {
  local python=$1 venv=$2
  if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv "$venv"
  elif command -v uv >/dev/null 2>&1; then
    uv venv --quiet --seed --python "$python" "$venv"
  elif "$python" -m virtualenv --version >/dev/null 2>&1; then
    "$python" -m virtualenv --quiet --python "$python" "$venv"
  elif "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv --without-pip "$venv" && "$python" -m pip --python "$venv/bin/python" install --quiet pip
  else
    echo "This Python has neither ensurepip nor pip. On Debian and Ubuntu: apt install python3-venv; then run this again." >&2
    return 1
  fi
}

# What pip does with a wheel it installs, for a checkout: where PYTHONDONTWRITEBYTECODE is set, every start of a node would
# compile some 300 files (0.4 s of a core, 1.2 s for three nodes that start together). Compiles only what has changed.
compile_sources() {
  (cd "$1" && .venv/bin/python -m compileall -q broker raft namesrv trimq) || true
}

# The stamp holds what was installed: an upgrade to "dev", and a change of pyproject.toml, setup.py or a compiled module,
# install again.
setup_venv() {
  local want=${1:-run} root venv stamp sum
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  venv="$root/.venv" stamp="$root/.venv/.trimq-installed"
  sum="$(cat "$root/pyproject.toml" "$root/setup.py" "$root"/trimq/message/_fast.{pxd,pyx} \
    "$root"/broker/replication/_plain_sends.pyx | cksum) $root"
  if [ -x "$venv/bin/python" ] && [ -f "$stamp" ]; then
    if [ "$(cat "$stamp")" = "$sum dev" ] || [ "$(cat "$stamp")" = "$sum $want" ]; then
      compile_sources "$root"
      return 0
    fi
  fi
  local python
  python=$(find_python) || return 1
  [ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1 || {
    echo "Making .venv with $python ..." >&2
    rm -rf "$venv"
    make_venv "$python" "$venv" || return 1
  }
  echo "Installing trimq into .venv ..." >&2
  # --group came with pip 25.1; the pip that a fresh venv carries may be older.
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check --upgrade 'pip>=25.1' || return 1
  if [ "$want" = dev ]; then
    (cd "$root" && "$venv/bin/python" -m pip install -qq --disable-pip-version-check --editable . --group dev) || return 1
  else
    (cd "$root" && "$venv/bin/python" -m pip install -qq --disable-pip-version-check --editable .) || return 1
  fi
  "$venv/bin/python" -c 'import trimq.message._fast, broker.replication._plain_sends' 2>/dev/null ||
    echo "No C compiler, or no headers of Python, on this machine: trimq runs without its compiled loops, slower." >&2
  compile_sources "$root"
  printf '%s\n' "$sum $want" > "$stamp"
}
