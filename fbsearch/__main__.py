"""`python -m fbsearch`."""

from fbsearch.cli.app import main

if __name__ == "__main__":
    main()
