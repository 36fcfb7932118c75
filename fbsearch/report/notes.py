"""The notes on a study and on its best trials that optuna-dashboard shows, in Markdown."""

import re
import shlex
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from fbsearch.config.export_file import Export, dump_export
from fbsearch.config.goals import describe_values
from fbsearch.config.space import field_value, format_value
from fbsearch.report import figures
from fbsearch.report.mistakes import Errors, describe_calibration
from fbsearch.report.statistics import short
from fbsearch.report.text import describe_importance, describe_part
from fbsearch.report.worth import estimate_worth
from fbsearch.study.front import read_front
from fbsearch.study.race_result import read_race
from fbsearch.study.study import best_trials, goals_of, stored_dataset
from fbsearch.study.trial_record import (
    TrialRecord,
    describe_untrained_of,
    is_failure,
    is_finished,
    sampled_names,
    trial_config,
)
from fbsearch.winners.intervals import wilson_interval

# The classes of the table in a note; all of them are in a file.
MAX_CLASSES = 10


def study_note(study: optuna.Study, frame: pd.DataFrame, errors: Errors | None) -> str:
    """Return the note on a study, in Markdown: the best trial, what each part is worth, where it errs, next commands.

    `frame` is that of `trials_table.trials_frame`, `errors` are of a configuration that was trained after the search.
    """
    trials = study.get_trials(deepcopy=False)
    states = [trial.state for trial in trials if is_finished(trial)]
    seconds = sum(TrialRecord.of(trial).seconds or 0 for trial in trials)
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
    parts = [_headline(study, best[0]), counts, _worth(frame)]
    if errors is None:
        commands.append("fbsearch train best.yaml --seeds 3")
    else:
        parts.append(_errors(errors))
    return "\n\n".join([*parts, _commands(commands)])


def _headline(study: optuna.Study, best: FrozenTrial) -> str:
    config, images, goals = trial_config(best), stored_dataset(study)["num_val"], goals_of(study)
    race = read_race(study)
    chosen = "" if race is None else f", {race.describe(best.number)}"
    rows = [(short(name), format_value(field_value(config, name))) for name in sampled_names(best)]
    rows += [(figures.COSTS[cost], f"{getattr(TrialRecord.of(best), cost):,}") for cost in ("num_parameters", "flops")]
    table = "\n".join(f"| {escape(key)} | {escape(value)} |" for key, value in rows)
    if goals == ("val_accuracy",):
        low, high = wilson_interval(best.values[0], images)
        how = (
            f"On {images:,} validation images; the 95% interval is {low:.1%} to {high:.1%}, and trials inside it "
            "cannot be told apart. Of equal trials the one with fewer parameters is named here."
        )
    else:
        how = f"On {images:,} validation images." + (_front_line(study, goals) if len(goals) > 1 else "")
    values = describe_values(goals, best.values)
    return f"## Best: {values}, trial {best.number}{chosen}\n\n{how}\n\n| | |\n|---|---|\n{table}"


def _front_line(study: optuna.Study, goals: Sequence[str]) -> str:
    """Return a sentence on the Pareto front."""
    front = read_front(study, goals)
    knee = "" if front.knee is None else f", its knee is trial {front.knee}"
    return f" The best has the best first objective. {len(front.values)} trials are on the Pareto front{knee}."


def _worth(frame: pd.DataFrame) -> str:
    """Return what each part is worth as the report has it, and why the page's own importance is another number."""
    worths = estimate_worth(frame)
    if not worths.parts:
        said = f"What the parts are worth cannot be said: {escape(worths.reason)}"
    else:
        lines = (describe_part(part) for part in worths.parts)
        said = "\n".join(f"- **{escape(name)}**: {escape(line)}" for name, line in lines)
    return f"### What each part is worth\n\n{said}\n\n{escape(describe_importance())}"


def _errors(errors: Errors) -> str:
    """Return where a trained configuration errs: its score, the hardest classes, the confusions, the calibration."""
    analysis, training = errors.analysis, errors.training
    spread = "" if training.accuracy_std is None else f" ± {training.accuracy_std:.2%}"
    seeds = f"{training.num_seeds} seed{'s' if training.num_seeds > 1 else ''}"
    interval = analysis.macro_f1_interval
    ends = "" if interval is None else f", 95% interval {interval[0]:.1%} to {interval[1]:.1%}"
    rows = [
        f"| {escape(one['class'])} | {_share(one, 'f1')} | {_share(one, 'recall')} | {_share(one, 'precision')} | "
        f"{one['support']:,} |"
        for one in analysis.hardest(MAX_CLASSES).to_dict("records")
    ]
    confused = ", ".join(
        f"{escape(truth)} as {escape(said)} ({round(images, 1):g} of {count})"
        for truth, said, images, count in analysis.confusions(3)
    )
    return "\n\n".join(
        [
            f"### Where trial {training.trial} errs",
            f"Trained after the search: {training.accuracy_mean:.2%}{spread} {training.scored_on} accuracy, {seeds}, "
            f"on {analysis.num_images:,} images. Macro-F1 {analysis.macro_f1:.2%}{ends}.",
            "The classes with the lowest F1, with 95% intervals:",
            "| class | F1 | recall | precision | images |\n|---|---|---|---|---|\n" + "\n".join(rows),
            f"Confused most: {confused or 'nothing'}.",
            f"Expected calibration error {analysis.calibration.error:.2%}. {describe_calibration(errors)}",
            f"All classes and the most confident mistakes are files of trial {training.trial}; confusion matrix and "
            "reliability are among this study's figures.",
        ]
    )


def _share(one: Mapping[Hashable, Any], key: str) -> str:
    """Format a share and its interval; nothing is known of NaN."""
    if one[key] != one[key]:
        return "-"
    return f"**{one[key]:.1%}** ({100 * one[f'{key}_low']:.1f} to {100 * one[f'{key}_high']:.1f})"


def _commands(commands: list[str]) -> str:
    return "### Next\n\n```sh\n" + "\n".join(commands) + "\n```"


def trial_note(export: Export, *, num_complete: int) -> str:
    """Return the note on one of the best trials: its rank, and an export file of this trial to copy."""
    return (
        f"**Rank {export.configs[0].rank} of {num_complete} complete trials.** To use it, save this as `best.yaml`:\n\n"
        f"```yaml\n{dump_export(export)}```"
    )


def escape(text: str) -> str:
    """Escape a text for Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", " ".join(text.split()))
