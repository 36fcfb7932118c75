"""The commands under `fbsearch studies`, which list, delete and rename the studies of a database."""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from fbsearch.cli.help import GroupedCommands
from fbsearch.cli.options import AsJson, Storage
from fbsearch.config.choices import DEFAULT_STORAGE, REPORTS
from fbsearch.errors import ConfigError, printable

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

app = typer.Typer(
    cls=GroupedCommands,
    invoke_without_command=True,
    rich_markup_mode=None,
    epilog="Example: `fbsearch studies --json`",
)

ExistingName = Annotated[str, typer.Argument(metavar="NAME", help="The study's name.")]


@contextmanager
def _opened(url: str) -> "Iterator[RDBStorage]":
    from fbsearch.study.database import open_storage, storage_errors

    with storage_errors(url):
        yield open_storage(url)


@app.callback()
def studies(context: typer.Context, storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """List the studies of a database; `delete` and `rename` change them."""
    if context.invoked_subcommand is not None:
        for name, option in (("storage", "--storage"), ("as_json", "--json")):
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":  # it would be ignored
                raise typer.BadParameter(f"write it after `{context.invoked_subcommand}`", param_hint=option)
        return
    from fbsearch.study.catalogue import list_studies

    with _opened(storage) as database:
        found = list_studies(database)
    if as_json:
        print(json.dumps([study.as_dict() for study in found]))
        return
    from fbsearch.cli.status import study_table
    from fbsearch.cli.terminal import SafeConsole

    # Into a pipe nothing is cut.
    console = SafeConsole() if sys.stdout.isatty() else SafeConsole(width=1000)
    console.print(study_table(found) if found else "there is no study in this database yet; `fbsearch run` makes one")


@app.command(epilog="Example: `fbsearch studies delete digits`")
def delete(
    name: ExistingName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Delete a study with all its trials. What was exported or trained from it stays."""
    from fbsearch.study.catalogue import delete_study
    from fbsearch.study.study import find_row

    with _opened(storage) as database:
        found = find_row(database, name)
        if not yes and found.num_trials:
            if not sys.stdin.isatty():
                raise ConfigError("there is no terminal in which to ask; --yes deletes without asking")
            typer.confirm(printable(f"Delete the study {name!r} with its {found.num_trials:,} trials?"), abort=True)
        print(printable(f"{name!r}: deleted, with {delete_study(database, name):,} trials"))


@app.command(epilog="Example: `fbsearch studies rename digits old-digits`")
def rename(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The study's name.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The name it gets.")],
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Give a study another name."""
    from fbsearch.files import file_name
    from fbsearch.study.catalogue import rename_study

    with _opened(storage) as database:
        rename_study(database, old, new)
    print(printable(f"{old!r}: is now {new!r}; `fbsearch run` goes on with it with --name {shlex.quote(new)}"))
    before, now = (REPORTS / file_name(name) for name in (old, new))
    if before.is_dir():
        print(printable(f"its trained networks stay in {before}; a report looks for them in {now}"))
