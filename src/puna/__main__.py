"""`python -m puna VERB ...` is the command `puna VERB ...`."""

from puna.cli import main

if __name__ == "__main__":
    main()
