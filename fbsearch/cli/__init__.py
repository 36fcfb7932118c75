"""The command line. Parses arguments, calls one function and prints its result; must not compute."""
