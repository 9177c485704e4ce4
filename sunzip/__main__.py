"""`python -m sunzip`: the command line where no script is installed."""

from sunzip.cli import main

# Processes that are spawned import this module again.
if __name__ == "__main__":
    main()
