"""What several commands share: options, their defaults, exit codes, opening a study."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from optuna import Study

DEFAULT_STORAGE = "sqlite:///studies/fbsearch.db"
EXIT_INTERRUPTED = 130


def _warn_of_password(context: typer.Context, parameter: typer.CallbackParam, value: str) -> str:
    """A password in an argument can be read by everybody on the machine."""
    from fbsearch.study.database import hide_password

    source = context.get_parameter_source(parameter.name or "")
    if source is not None and source.name == "COMMANDLINE" and hide_password(value) != value:
        typer.echo("note: --storage shows its password in the process list; $FBSEARCH_STORAGE does not", err=True)
    return value


Storage = Annotated[
    str,
    typer.Option(
        callback=_warn_of_password,
        envvar="FBSEARCH_STORAGE",
        help="Database: sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME.",
    ),
]
Untrusted = Annotated[
    bool, typer.Option("--untrusted", help="The file is somebody else's: its paths may not leave the current folder.")
]
StudyName = Annotated[str | None, typer.Argument(help="A study's name. Without one: the newest in the database.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def open_study(storage: str, name: str | None) -> "Study":
    """The study of that name, or the newest. StorageError says in words what is wrong."""
    from fbsearch.study.database import open_storage, storage_errors
    from fbsearch.study.study import load_study

    with storage_errors(storage):
        return load_study(open_storage(storage), name)
