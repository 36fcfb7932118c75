"""`python -m fbsearch`."""

from fbsearch.cli import main

if __name__ == "__main__":
    main()
