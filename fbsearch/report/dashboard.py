"""What optuna-dashboard shows of a study beyond parameters and values: notes, figures and files of ours.

Writes into the database, as that is where optuna-dashboard reads; never into a study that is being searched. What is
there already is left alone if it is the same, and a note that a person has edited always. Of HTTP it knows only that
a guard stands in front.
"""

import contextlib
import csv
import hashlib
import importlib.metadata
import io
import json
import mimetypes
import re
import shlex
import uuid
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import optuna_dashboard
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import FrozenTrial, TrialState
from PIL import Image
from pydantic import ValidationError

from fbsearch.config.export_file import Export, dump_export
from fbsearch.config.models import TrialConfig
from fbsearch.errors import ConfigError, StorageError
from fbsearch.network.patterns import generate_pattern
from fbsearch.pictures.maps import color
from fbsearch.report import figures
from fbsearch.report import parameter_figures as effects
from fbsearch.report.http_guard import Guard
from fbsearch.report.page import draw_stored_attention
from fbsearch.report.statistics import parameters, pareto_front, wilson_interval
from fbsearch.report.trials_table import trials_frame
from fbsearch.study.database import storage_errors
from fbsearch.study.export import export_best
from fbsearch.study.locks import hold_study
from fbsearch.study.study import NUM_SHOWN, best_trials
from fbsearch.study.trial_record import describe_untrained_of, is_failure, is_finished, sampled_names, trial_config

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    import pandas as pd
    import plotly.graph_objects as go

PATTERN = "model.pattern"
# A figure lies in the database as text, and whole in each answer to a page that is open.
MAX_TRIALS = 500
MASK_PIXELS = 256
SIGNED = re.compile(r"\n\n\*Written by fbsearch [^\n]*\(([0-9a-f]{8})\)\.\*\n?\Z")
# Where optuna-dashboard looks for the files of a trial besides the trial's own attributes, which are closed once the
# trial has ended (upload_artifact refuses it): study attributes `dashboard:artifacts:<trial id>:<artifact id>`.
TRIAL_FILES = "dashboard:artifacts:{trial_id}:{artifact_id}"
COSTS = {"parameters": "num_parameters", "FLOPs an image": "flops"}


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
    """optuna-dashboard behind our guard, for a server that listens on `host`, the studies furnished by us.

    `artifacts` is the folder of the files; without it one beside an SQLite database. With `read_only` nothing is
    written. ConfigError if the folder cannot be made; what else there is to know is said in lines.
    """
    beside = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else Path("studies") / "fbsearch"
    folder = artifacts or beside.with_suffix(".artifacts")
    # Through this cache each finished trial is read once; without it all of them every few seconds.
    cached, store = FeasibleBest(database), FileSystemArtifactStore(folder)
    if not read_only:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--artifacts {folder}: cannot be made: {error.strerror}") from None
        with storage_errors(url):
            annotate_all(cached, url, store, say=say)
    app = optuna_dashboard.wsgi(cached, artifact_store=store)
    return Guard(_with_style(app), host=host, token=token, read_only=read_only)


class FeasibleBest(_CachedStorage):
    """Optuna's cache, which calls that trial the best that we do; optuna-dashboard's page asks it alone.

    Optuna's own would crown a trial that breaks constraints, and of equal values the first, not the smallest network.
    Where every complete trial breaks one it still does: the page cannot show that there is none.
    """

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        study = optuna.load_study(storage=self, study_name=self.get_study_name_from_id(study_id))
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        feasible = {trial.number for trial in trials if all(value <= 0 for value in trial.constraints.values())}
        if study.directions == [optuna.study.StudyDirection.MAXIMIZE] and feasible:
            return next(trial for trial in best_trials(study, len(trials)) if trial.number in feasible)
        return super().get_best_trial(study_id)


def _with_style(app: "WSGIApplication") -> "WSGIApplication":
    """optuna-dashboard with our style on its pages, which are not made for phones."""
    style = resources.files("fbsearch.report").joinpath("templates", "dashboard.css").read_bytes()

    def styled(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "GET" or not environ["PATH_INFO"].startswith("/dashboard"):
            return app(environ, start_response)
        for condition in ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH", "HTTP_RANGE"):
            environ.pop(condition, None)
        said: list[Any] = []
        answer: Any = app(environ, lambda *head: said.append(head))  # type: ignore[arg-type]
        with contextlib.closing(answer) if hasattr(answer, "close") else contextlib.nullcontext():
            page = b"".join(answer).replace(b"</head>", b"<style>\n" + style + b"</style>\n</head>")
        status, headers, *more = said[-1]
        kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
        start_response(status, [*kept, ("Content-Length", str(len(page)))], *more)
        return [page]

    return styled


def annotate_all(
    storage: optuna.storages.BaseStorage, url: str, store: FileSystemArtifactStore, *, say: Callable[[str], None]
) -> None:
    """Write notes, figures and files on every study that is fbsearch's and not being searched."""
    # optuna.get_all_study_summaries would read every trial of every study.
    for summary in storage.get_all_studies():
        if "config" not in summary.user_attrs or len(summary.directions) != 1:
            continue
        name = summary.study_name
        study = optuna.load_study(storage=storage, study_name=name)
        try:
            if _is_searched(study, url):
                say(f"study {name!r} is being searched: its notes and figures are left as they are")
            else:
                annotate(study, store)
        except (ValidationError, KeyError):
            say(f"study {name!r} was made by another version of fbsearch: shown without notes and figures")


def _is_searched(study: optuna.Study, url: str) -> bool:
    """Whether a coordinator is at work. Held for this look only, so that a search can begin at any time."""
    if study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) and not url.startswith("sqlite"):
        return True
    try:
        with hold_study(url, study.study_name):
            return False
    except StorageError:
        return True


def annotate(study: optuna.Study, store: FileSystemArtifactStore) -> None:
    """Write our note and figures on a study; notes with the configuration and files on its best trials."""
    _save_note(study, study_note(study))
    for name, figure in draw(study).items():
        optuna_dashboard.save_plotly_graph_object(study, figure, graph_object_id=name)
    best = best_trials(study, NUM_SHOWN)
    if not best:
        return
    export = export_best(study, top=NUM_SHOWN)
    num_complete = len(best_trials(study, len(study.trials)))
    attributes = study._storage.get_study_system_attrs(study._study_id)
    for trial, config in zip(best, export.configs, strict=True):
        # The time of the trial, not of this moment: the note is the same every time.
        one = export.model_copy(update={"configs": (config,), "exported": trial.datetime_complete})
        _save_note(optuna.trial.Trial(study, trial._trial_id), trial_note(one, num_complete=num_complete))
        for filename, content in _files(trial, study.user_attrs["dataset"].get("class_names", ())).items():
            _save_file(study, trial, store, attributes, filename=filename, content=content)


# ------------------------------------------------------------------------------------------------------------- notes


def study_note(study: optuna.Study) -> str:
    """The note on a study, in Markdown: headline, what it cost, how to go on."""
    trials = study.get_trials(deepcopy=False)
    states = [trial.state for trial in trials if is_finished(trial)]
    seconds = sum(trial.user_attrs.get("seconds", 0) for trial in trials)
    counts = (
        f"{states.count(TrialState.COMPLETE)} trials are complete, {states.count(TrialState.PRUNED)} pruned, "
        f"{sum(map(is_failure, trials))} failed{describe_untrained_of(trials)}; "
        f"{seconds / 60:.1f} minutes of training in all."
    )
    best = best_trials(study, 1)
    commands = [f"fbsearch run STUDY.yaml --trials {len(trials) + 100}"]
    if not best:
        return "\n\n".join(["## No trial is complete yet", counts, _commands(commands)])
    name = shlex.quote(study.study_name) if study.study_name.isprintable() else "NAME"
    commands += [f"fbsearch export {name} --top 5 --output best.yaml", f"fbsearch report {name}"]
    return "\n\n".join([_headline(study, best[0]), counts, _commands(commands)])


def _headline(study: optuna.Study, best: FrozenTrial) -> str:
    assert best.value is not None
    config, images = trial_config(best), study.user_attrs["dataset"]["num_val"]
    low, high = wilson_interval(best.value, images)
    rows = [(name.partition(".")[2].replace("_", " "), _value(config, name)) for name in sampled_names(best)]
    rows += [(label, f"{best.user_attrs[key]:,}") for label, key in COSTS.items()]
    table = "\n".join(f"| {escape(key)} | {escape(value)} |" for key, value in rows)
    return (
        f"## Best: {best.value:.2%} validation accuracy, trial {best.number}\n\n"
        f"On {images:,} validation images; its 95% interval is {low:.1%} to {high:.1%}, and closer trials are not told "
        "apart. Of equal trials the one with fewer parameters is named here.\n\n"
        f"| | |\n|---|---|\n{table}"
    )


def _value(config: TrialConfig, name: str) -> str:
    section, field = name.split(".")
    value = getattr(getattr(config, section), field)
    if isinstance(value, tuple):
        return str(list(value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _commands(commands: list[str]) -> str:
    return "### How to go on\n\n```sh\n" + "\n".join(commands) + "\n```"


def trial_note(export: Export, *, num_complete: int) -> str:
    """The note on one of the best trials: its rank and an export file of it alone, to copy."""
    return (
        f"**Rank {export.configs[0].rank} of {num_complete} complete trials.** To use it, save this as `best.yaml`:\n\n"
        f"```yaml\n{dump_export(export)}```"
    )


def escape(text: str) -> str:
    """A text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", " ".join(text.split()))


def _save_note(study_or_trial: optuna.Study | optuna.Trial, text: str) -> None:
    """Save a note unless a person has changed what is there: ours end with a sum of what stands above."""
    text = text.replace("\r\n", "\n")
    there = optuna_dashboard.get_note(study_or_trial).replace("\r\n", "\n")
    signature = SIGNED.search(there)
    if there.strip() and (signature is None or signature[1] != _sum(there[: signature.start()])):
        return
    version = importlib.metadata.version("fbsearch")
    signed = f"{text}\n\n*Written by fbsearch {version}; a note that you edit is left as it is ({_sum(text)}).*\n"
    if signed.strip() != there.strip():
        optuna_dashboard.save_note(study_or_trial, signed)


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# ----------------------------------------------------------------------------------------------------------- figures


def draw(study: optuna.Study) -> "dict[str, go.Figure]":
    """The report's figures that are shown here, by the id of each; none before there is something in them."""
    frame = _thin(trials_frame(study))
    drawn = {}
    if (frame["state"] == "complete").any():
        drawn["accuracy-and-parameters"] = figures.plot_cost(frame, "num_parameters")
        if PATTERN in parameters(frame):
            by_pattern = effects.plot_slice(frame, PATTERN).update_layout(title_text="Accuracy by pattern")
            drawn["accuracy-by-pattern"] = by_pattern
    if frame["history"].map(bool).any():
        drawn["learning-curves"] = figures.plot_learning_curves(frame)
    for figure in drawn.values():
        # The page is light or dark as its reader likes, a figure in the database is one: grey is seen on both.
        # The legend stands below, where on a phone it has room to grow.
        figure.update_layout(font_color="#808080", height=450, margin_t=48, legend={"y": -0.2, "yanchor": "top"})
        figure.update_xaxes(gridcolor="rgba(128, 128, 128, 0.25)")
        figure.update_yaxes(gridcolor="rgba(128, 128, 128, 0.25)")
    return drawn


def _thin(frame: "pd.DataFrame") -> "pd.DataFrame":
    """At most MAX_TRIALS trials: the best and those that no other beats, the rest drawn evenly."""
    if len(frame) <= MAX_TRIALS:
        return frame
    shown = frame[frame["rank"] <= NUM_SHOWN].index.union(pareto_front(frame, "num_parameters").index)[:MAX_TRIALS]
    others = frame.drop(shown).sample(MAX_TRIALS - len(shown), random_state=0).index
    return frame.loc[shown.union(others)]


# ------------------------------------------------------------------------------------------------------------- files


def _files(trial: FrozenTrial, class_names: Sequence[str]) -> dict[str, bytes]:
    """The files of a trial: what it looks through and where it looks as PNG, its epochs as CSV, shown as a table."""
    model = trial_config(trial).model
    mask_HW = generate_pattern(model.pattern, model.pattern_resolution, model.pattern_resolution)
    picture = io.BytesIO()
    color(mask_HW).resize((MASK_PIXELS, MASK_PIXELS), Image.Resampling.NEAREST).save(picture, format="PNG")
    table = io.StringIO()
    history: list[dict[str, Any]] = trial.user_attrs["history"]
    writer = csv.DictWriter(table, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in history)
    files = {f"mask-{model.pattern}.png": picture.getvalue(), "learning-curve.csv": table.getvalue().encode()}
    attention = trial.user_attrs.get("attention")
    drawn = attention and draw_stored_attention(attention, class_names)
    return files | ({"attention-maps.png": drawn} if drawn else {})


def _save_file(
    study: optuna.Study,
    trial: FrozenTrial,
    store: FileSystemArtifactStore,
    attributes: dict[str, Any],
    *,
    filename: str,
    content: bytes,
) -> None:
    """Hang a file on a finished trial, once: its id is always the same, and what a person deletes stays deleted."""
    origin = f"fbsearch/{study.study_name}/{trial.number}/{trial.datetime_complete}/{filename}"
    artifact_id = str(uuid.uuid5(uuid.NAMESPACE_URL, origin))
    key = TRIAL_FILES.format(trial_id=trial._trial_id, artifact_id=artifact_id)
    if attributes.get(key) == json.dumps(None):
        return
    store.write(artifact_id, io.BytesIO(content))
    if key not in attributes:
        kind = mimetypes.guess_type(filename)[0]
        meta = {"artifact_id": artifact_id, "filename": filename, "mimetype": kind, "encoding": None}
        study._storage.set_study_system_attr(study._study_id, key, json.dumps(meta))
