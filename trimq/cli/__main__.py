"""`python -m trimq.cli`: the same as the `trimq` script."""

from trimq.cli import main

main(prog_name="trimq")
