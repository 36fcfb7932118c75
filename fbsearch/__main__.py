"""`python -m fbsearch`."""

if __name__ == "__main__":
    import sys

    # Python puts the current folder in front here, whose files would stand in for modules: a pickle.py, a torch.py.
    if not sys.flags.safe_path:
        sys.path.pop(0)

    from fbsearch.cli.app import main

    main()
