"""`python -m mtlcore` is `mtl`."""

from mtlcore.cli import main

main()
