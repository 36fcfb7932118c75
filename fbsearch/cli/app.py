"""The `fbsearch` command. Each command imports what it needs in its body, so that `--help` stays fast."""

import os
import sys
from typing import Annotated

import typer

from fbsearch.cli import bench_commands, model_commands, study_commands
from fbsearch.errors import FbsearchError, printable_lines

app = typer.Typer(
    name="fbsearch",
    help="Find the best FractalBrainNet for your images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run a command. An FbsearchError is printed as one message and exits with 1, wrong usage with 2."""
    # No process that is started (workers, multiprocessing's own, compilers) may find modules in the current folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        app(prog_name="fbsearch")
    except FbsearchError as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {printable_lines(str(error))}", file=sys.stderr)
        sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        print(f"fbsearch {importlib.metadata.version('fbsearch')}")
        raise typer.Exit


@app.callback()
def _options(
    _debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.add_typer(study_commands.app)
app.add_typer(model_commands.app)
app.add_typer(bench_commands.app, name="bench")
