"""The `fbsearch` command. Each command imports what it needs in its body, so that `--help` stays fast."""

import errno
import io
import os
import re
import sys
from typing import Annotated

import typer

from fbsearch.cli import bench_commands, catalogue_commands, model_commands, study_commands
from fbsearch.cli.help import LOOK, MEASURE, GroupedCommands
from fbsearch.cli.options import EXIT_BUG
from fbsearch.errors import FbsearchError, printable_lines

# Errors of the operating system that are the machine's fault: no space, quota, memory, files, or a broken disk.
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO)

app = typer.Typer(
    name="fbsearch",
    help="Find the best FractalBrainNet for your images.",
    cls=GroupedCommands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run a command. An FbsearchError is printed as one message and exits with 1, wrong usage with 2, a bug with 70."""
    # No process that is started (workers, multiprocessing's own, compilers) may find modules in the current folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files and classes need not fit the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="fbsearch")
    except FbsearchError as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {printable_lines(str(error))}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        is_bug = not isinstance(error, MemoryError) and getattr(error, "errno", None) not in MACHINE_ERRORS
        message = _report_bug(error) if is_bug else f"{type(error).__name__}: {error}"
        print(f"error: {printable_lines(message)}", file=sys.stderr)
        sys.exit(EXIT_BUG if is_bug else 1)


def _report_bug(error: Exception) -> str:
    """Write the traceback of an unforeseen error to a new file, and return the message that names it."""
    import importlib.metadata
    import platform
    import tempfile
    import traceback

    from fbsearch.study.database import hide_password

    lines = [f"fbsearch {importlib.metadata.version('fbsearch')}, Python {platform.python_version()}, "]
    lines += [f"{platform.platform()}\n", command_line(), "\n", *traceback.format_exception(error)]
    text = "\n".join(hide_password(line) if "://" in line else line for line in "".join(lines).splitlines())
    what = f"this is a bug in fbsearch ({type(error).__name__}), please report it"
    try:
        number, path = tempfile.mkstemp(prefix="fbsearch-bug-", suffix=".txt")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text + "\n")
    except OSError:
        return f"{what}:\n{text}"
    return f"{what} with the content of {path}"


def command_line() -> str:
    """Return the command as it was typed, the dashboard's token left out."""
    words = [re.sub(r"^--token=.*", "--token=***", word, flags=re.DOTALL) for word in sys.argv]
    return " ".join("***" if before == "--token" else word for before, word in zip(["", *words], words, strict=False))


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
app.add_typer(catalogue_commands.app, name="studies", rich_help_panel=LOOK)
app.add_typer(model_commands.app)
app.add_typer(bench_commands.app, name="bench", rich_help_panel=MEASURE)
