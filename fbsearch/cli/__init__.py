"""The command line: parse, call, print. Must not compute."""
