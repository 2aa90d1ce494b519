"""`python -m edgeguard` is the command line."""

from edgeguard.cli import main

main(prog_name="edgeguard")
