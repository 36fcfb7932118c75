"""Our additions to optuna-dashboard: notes, figures and files of each study, a style for phones, and the guard.

They are written into the study's database, where optuna-dashboard reads them, but never while the study is searched.
A note that a person has edited stays as it is.
"""

import csv
import hashlib
import importlib.metadata
import io
import json
import mimetypes
import re
import uuid
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import optuna_dashboard
import sqlalchemy
from optuna.trial import FrozenTrial

from fbsearch.config.choices import REPORTS
from fbsearch.errors import ConfigError
from fbsearch.files import file_name
from fbsearch.network.patterns import generate_pattern
from fbsearch.pictures.maps import mask_png
from fbsearch.report import figures, parameter_figures
from fbsearch.report.final_results import read_retrained
from fbsearch.report.http_guard import Guard, add_style
from fbsearch.report.mistakes import Errors, error_files, plot_confusion, plot_reliability
from fbsearch.report.notes import study_note, trial_note
from fbsearch.report.page import draw_stored_attention
from fbsearch.report.statistics import metric_of, parameters, pareto_front
from fbsearch.report.trials_table import trials_frame
from fbsearch.study.dashboard_storage import (
    ArtifactFolder,
    FeasibleBest,
    editable_trial,
    read_system_attributes,
    trial_id,
    write_system_attribute,
)
from fbsearch.study.database import storage_errors
from fbsearch.study.export import export_best
from fbsearch.study.locks import is_claimed
from fbsearch.study.study import NUM_SHOWN, best_trials, is_ours, stored_dataset
from fbsearch.study.trial_record import TrialRecord, trial_config

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    import pandas as pd
    import plotly.graph_objects as go

PATTERN = "model.pattern"
# A figure is stored as text and sent whole to each open page, so it shows at most this many trials.
MAX_TRIALS = 500
# A confusion matrix of more classes shows no numbers: beside another figure it is half as wide as in the report.
MAX_NUMBERS = 5
SIGNED = re.compile(r"\n\n\*Written by fbsearch [^\n]*\(([0-9a-f]{8})\)\.\*\n?\Z")
# The key of a study attribute in which optuna-dashboard looks for the files of a trial. (upload_artifact writes them to
# the attributes of the trial, which cannot be changed once the trial has ended.)
TRIAL_FILES = "dashboard:artifacts:{trial_id}:{artifact_id}"


def open_dashboard(
    database: optuna.storages.RDBStorage,
    url: str,
    *,
    artifacts: Path | None,
    host: str,
    token: str | None,
    read_only: bool,
    say: Callable[[str], None],
) -> "WSGIApplication":
    """Return optuna-dashboard behind our guard, for a server that listens on `host`, and annotate the studies.

    `artifacts` is the folder of the files, by default beside an SQLite database. With `read_only` nothing is written.
    `say` gets a line for each study without annotations. Raises ConfigError if the folder cannot be made.
    """
    beside = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else Path("studies") / "fbsearch"
    folder = artifacts or beside.with_suffix(".artifacts")
    # With this cache each finished trial is read once instead of every few seconds.
    cached, store = FeasibleBest(database), ArtifactFolder(folder)
    if not read_only:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--artifacts {folder}: cannot be made: {error.strerror}") from None
        with storage_errors(url):
            annotate_all(cached, store, say=say)
    style = resources.files("fbsearch.report").joinpath("templates", "dashboard.css").read_bytes()
    app = add_style(optuna_dashboard.wsgi(cached, artifact_store=store), style, path="/dashboard")
    return Guard(app, host=host, token=token, read_only=read_only)


def annotate_all(
    storage: optuna.storages.BaseStorage,
    store: ArtifactFolder,
    *,
    say: Callable[[str], None],
    results: Path = REPORTS,
) -> None:
    """Annotate every study that fbsearch made, except those that are being searched.

    `results` is the folder in which `fbsearch train` has left the trained winners.
    """
    # optuna.get_all_study_summaries reads every trial of every study.
    for summary in storage.get_all_studies():
        if not is_ours(summary.user_attrs):
            continue
        study = optuna.load_study(storage=storage, study_name=summary.study_name)
        try:
            if is_claimed(study):
                say(f"study {study.study_name!r} is being searched: its notes and figures are left as they are")
            else:
                annotate(study, store, results=results)
        except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError):
            raise
        except Exception as error:  # another version, or another person, may have stored anything
            say(
                f"study {study.study_name!r} was made by another version of fbsearch, or is damaged "
                f"({type(error).__name__}): shown without notes and figures"
            )


def annotate(study: optuna.Study, store: ArtifactFolder, *, results: Path = REPORTS) -> None:
    """Write a note and figures on a study, and notes with the configuration and files on its best trials.

    The trial whose training is in `results` gets the files of its errors too.
    """
    frame = trials_frame(study)
    errors = read_retrained(results / file_name(study.study_name), frame).errors
    _save_note(study, study_note(study, frame, errors))
    for name, figure in draw(frame, errors).items():
        optuna_dashboard.save_plotly_graph_object(study, figure, graph_object_id=name)
    best = best_trials(study, NUM_SHOWN)
    if not best:
        return
    export = export_best(study, top=NUM_SHOWN)
    num_complete = len(best_trials(study, len(study.trials)))
    attributes = read_system_attributes(study)
    for trial, config in zip(best, export.configs, strict=True):
        # With the time of the trial, the note is the same every time.
        one = export.model_copy(update={"configs": (config,), "exported": trial.datetime_complete})
        _save_note(editable_trial(study, trial), trial_note(one, num_complete=num_complete))
        for filename, content in _files(trial, stored_dataset(study).get("class_names", ())).items():
            _save_file(study, trial, store, attributes, filename=filename, content=content)
    if errors is not None:
        trained = study.trials[errors.training.trial]
        for filename, content in error_files(errors).items():
            _save_file(study, trained, store, attributes, filename=filename, content=content)


def _save_note(study_or_trial: optuna.Study | optuna.Trial, text: str) -> None:
    """Save a note unless a person has edited the present one: our notes end with a checksum of their text."""
    text = text.replace("\r\n", "\n")
    present = optuna_dashboard.get_note(study_or_trial).replace("\r\n", "\n")
    signature = SIGNED.search(present)
    if present.strip() and (signature is None or signature[1] != _checksum(present[: signature.start()])):
        return
    version = importlib.metadata.version("fbsearch")
    signed = f"{text}\n\n*Written by fbsearch {version}; a note that you edit is left as it is ({_checksum(text)}).*\n"
    if signed.strip() != present.strip():
        optuna_dashboard.save_note(study_or_trial, signed)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def draw(frame: "pd.DataFrame", errors: Errors | None) -> "dict[str, go.Figure]":
    """Return the figures of the report that the dashboard shows, by id; a figure without data is left out."""
    frame = _thin(frame)
    drawn = {}
    if (frame["state"] == "complete").any():
        drawn["accuracy-and-parameters"] = figures.plot_cost(frame, "num_parameters")
        if PATTERN in parameters(frame):
            by_pattern = parameter_figures.plot_slice(frame, PATTERN)
            score = "Accuracy" if metric_of(frame) == "val_accuracy" else "Score"
            drawn["accuracy-by-pattern"] = by_pattern.update_layout(title_text=f"{score} by pattern")
    if frame["history"].map(bool).any():
        drawn["learning-curves"] = figures.plot_learning_curves(frame)
    heights = dict.fromkeys(drawn, 450)
    if errors is not None:
        for name, plot in (("confusion-matrix", plot_confusion), ("reliability", plot_reliability)):
            drawn[name] = plot(errors)
            drawn[name].update_layout(title_text=f"{drawn[name].layout.title.text}, trial {errors.training.trial}")
            heights[name] = max(450, drawn[name].layout.height)
        if len(errors.analysis.class_names) > MAX_NUMBERS:
            drawn["confusion-matrix"].update_layout(annotations=[])
    for name, figure in drawn.items():
        # The page can be light or dark, the stored figure cannot: grey is readable on both.
        # Below the figure, the legend has room to grow on a phone.
        figure.update_layout(font_color="#808080", height=heights[name], margin_t=48)
        figure.update_layout(legend={"y": -0.2, "yanchor": "top"})
        figure.update_annotations(font_color="#808080")
        figure.update_layout({f"{axis}_gridcolor": "rgba(128, 128, 128, 0.25)" for axis in ("xaxis", "yaxis")})
    return drawn


def _thin(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return at most MAX_TRIALS trials: the best, the Pareto front and a random sample of the others."""
    if len(frame) <= MAX_TRIALS:
        return frame
    shown = frame[frame["rank"] <= NUM_SHOWN].index.union(pareto_front(frame, "num_parameters").index)[:MAX_TRIALS]
    others = frame.drop(shown).sample(MAX_TRIALS - len(shown), random_state=0).index
    return frame.loc[shown.union(others)]


def _files(trial: FrozenTrial, class_names: Sequence[str]) -> dict[str, bytes]:
    """Return the files of a trial: mask and attention maps as PNG, its epochs as CSV, which is shown as a table."""
    model = trial_config(trial).model
    table = io.StringIO()
    record = TrialRecord.of(trial)
    history = record.history or []
    writer = csv.DictWriter(table, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in history)
    files = {"learning-curve.csv": table.getvalue().encode()}
    if model.uses_mask:
        mask_HW = generate_pattern(model.pattern, model.pattern_resolution, model.pattern_resolution)
        files = {f"mask-{model.pattern}.png": mask_png(mask_HW)} | files
    attention = record.attention
    drawn = attention and draw_stored_attention(attention, class_names)
    return files | ({"attention-maps.png": drawn} if drawn else {})


def _save_file(
    study: optuna.Study,
    trial: FrozenTrial,
    store: ArtifactFolder,
    attributes: dict[str, Any],
    *,
    filename: str,
    content: bytes,
) -> None:
    """Attach a file to a finished trial, once: its id is always the same, and a file that was deleted stays deleted."""
    origin = f"fbsearch/{study.study_name}/{trial.number}/{trial.datetime_complete}/{filename}"
    artifact_id = str(uuid.uuid5(uuid.NAMESPACE_URL, origin))
    key = TRIAL_FILES.format(trial_id=trial_id(trial), artifact_id=artifact_id)
    if attributes.get(key) == json.dumps(None):
        return
    store.write(artifact_id, io.BytesIO(content))
    if key not in attributes:
        kind = mimetypes.guess_type(filename)[0]
        meta = {"artifact_id": artifact_id, "filename": filename, "mimetype": kind, "encoding": None}
        write_system_attribute(study, key, json.dumps(meta))
