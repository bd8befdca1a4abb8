"""`python -m kvwattd` is `kvwatt`."""

from kvwattd.cli import main

main()
