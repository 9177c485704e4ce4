"""`python -m sunzip`: the command line where no script is installed."""

from sunzip.cli import main

main()
