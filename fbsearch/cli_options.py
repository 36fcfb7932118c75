"""What several commands share: options, their defaults, exit codes, opening a study."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from optuna import Study

DEFAULT_STORAGE = "sqlite:///studies/fbsearch.db"
EXIT_INTERRUPTED = 130

Storage = Annotated[
    str,
    typer.Option(
        envvar="FBSEARCH_STORAGE",
        help="Database: sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME.",
    ),
]
StudyName = Annotated[str | None, typer.Argument(help="A study's name. Without one: the newest in the database.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def open_study(storage: str, name: str | None) -> "Study":
    """The study of that name, or the newest. StorageError says in words what is wrong."""
    from fbsearch.storage import open_storage, storage_errors
    from fbsearch.study import load_study

    with storage_errors(storage):
        return load_study(open_storage(storage), name)
