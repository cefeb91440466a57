"""`python -m workers`: the same as the command `eventlog`."""

from workers.cli import main

main()
