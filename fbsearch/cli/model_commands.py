"""The commands that train, use and draw networks."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fbsearch.cli.help import USE
from fbsearch.cli.options import EXIT_INTERRUPTED, AsJson, Device, Force, Untrusted
from fbsearch.config.choices import REPORTS, BaselineName, BaselineRecipe, ModelFormat
from fbsearch.errors import ConfigError, printable

app = typer.Typer(rich_markup_mode=None)

TrainedModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A folder that `fbsearch train` wrote, or the model.safetensors in it.")
]


@app.command(rich_help_panel=USE, epilog="Example: `fbsearch train best.yaml --seeds 3 --epochs 30`")
def train(
    best: Annotated[Path, typer.Argument(help="A file that `fbsearch export` wrote.")],
    rank: Annotated[int | None, typer.Option(min=1, help="Which configuration; 1, the best, by default.")] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Train this many of the best configurations instead of one.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many times each: its own seed, then +1, +2 ...")] = 3,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data, instead of the configuration's or its budget.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds of training steps for each seed, instead of passes.")
    ] = None,
    keep_validation: Annotated[
        bool, typer.Option("--keep-validation", help="Keep the validation images apart instead of training on them.")
    ] = False,
    early_stopping: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many epochs without a better validation accuracy.")
    ] = None,
    keep_best: Annotated[
        bool | None,
        typer.Option("--keep-best/--keep-last", help="Which epoch's weights; by default what the configuration says."),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines",
            help="Also train a CNN, ResNet-8, FractalNet, ResNet-18, small, medium, a random search; compare.",
        ),
    ] = False,
    baseline: Annotated[
        list[BaselineName] | None,
        typer.Option(help="One of these instead of all, where all would take too long. Can be repeated."),
    ] = None,
    baseline_recipe: Annotated[
        BaselineRecipe, typer.Option(help="How FractalNet is trained: same, as rank 1 | paper, 400 epochs of its own.")
    ] = BaselineRecipe.SAME,
    device: Device = "auto",
    output: Annotated[Path, typer.Option(help="Folder; results go to OUTPUT/<study>/rank-<R>/seed-<S>.")] = REPORTS,
    untrusted: Untrusted = False,
    as_json: AsJson = False,
) -> None:
    """Train exported configurations, as in the search or longer, and score them on the test split.

    The same command goes on after the last whole epoch where one was killed; a finished seed is not trained again.
    """
    from fbsearch.cli.tables import print_comparison, print_errors, print_summary, print_trained_folder
    from fbsearch.cli.terminal import SafeConsole
    from fbsearch.winners.final_training import train_export
    from fbsearch.winners.plan import Settings

    if rank is not None and top is not None:
        raise typer.BadParameter("--rank and --top cannot be used together", param_hint="--top")
    if epochs is not None and seconds is not None:
        raise typer.BadParameter("--epochs and --seconds cannot be used together", param_hint="--seconds")
    settings = Settings(
        num_seeds=seeds,
        epochs=epochs,
        seconds=seconds,
        early_stopping=early_stopping,
        keep_best=keep_best,
        keep_validation=keep_validation,
        output=output,
    )
    console = SafeConsole(stderr=as_json)
    try:
        found = train_export(
            best,
            settings,
            rank=rank,
            top=top,
            baselines=list(BaselineName) if baselines else baseline or [],
            recipe=baseline_recipe,
            device=device,
            untrusted=untrusted,
            console=console,
        )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on after the last whole epoch", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if found is None:
        return
    if as_json:
        print(json.dumps(found.as_dict()))
        return
    print_summary(console, found.summary, notes=found.notes)
    for row, errors in zip(found.summary, found.errors, strict=True):
        if errors is not None:
            print_errors(console, errors, name=f"rank {row.rank}" if len(found.summary) > 1 else "")
    if found.comparison is not None:
        print_comparison(console, found.comparison)
    print_trained_folder(console, found.folder)


@app.command(rich_help_panel=USE, epilog="Example: `fbsearch predict reports/digits/rank-1/seed-0 photo.png --top 3`")
def predict(
    model: TrainedModelPath,
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 3,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Classify images. Files that cannot be read are reported at once, and the exit code is then 1."""
    from fbsearch.training.devices import choose_device
    from fbsearch.winners import predict as prediction
    from fbsearch.winners.checkpoint import load_model

    loaded = load_model(model, device=choose_device(device))
    answers = []
    for answer in prediction.predict(loaded, prediction.find_images(images), top=top):
        answers.append(answer)
        if answer.error is not None:
            print(f"error: {printable(f'{answer.path}: {answer.error}')}", file=sys.stderr)
        elif not as_json:
            classes = ", ".join(f"{name} {share:.1%}" for name, share in answer.classes)
            print(printable(f"{answer.path}: {classes}"), flush=True)
    if as_json:
        print(json.dumps({"model": str(model), "images": [answer.as_dict() for answer in answers]}))
    raise typer.Exit(1 if any(answer.error for answer in answers) else 0)


@app.command(
    "export-model",
    rich_help_panel=USE,
    epilog="Example: `fbsearch export-model reports/digits/rank-1/seed-0 --format onnx`",
)
def export_model(
    model: TrainedModelPath,
    output_format: Annotated[
        ModelFormat, typer.Option("--format", help="onnx, or torch: a program of torch.export (.pt2).")
    ],
    output: Annotated[
        Path | None, typer.Option(help="The file to write, - is standard output; without it, in the model's folder.")
    ] = None,
    force: Force = False,
) -> None:
    """Write a trained network for other programs: images in [0, 1] to logits, any batch size.

    The file is kept only if its outputs are those of the network.
    """
    from fbsearch.files import message_stream
    from fbsearch.winners import model_export
    from fbsearch.winners.checkpoint import load_model

    loaded = load_model(model)
    path = output or loaded.folder / f"model{model_export.EXPORT_ENDINGS[output_format]}"
    worst = model_export.export_model(loaded, path, kind=output_format, force=force)
    card = loaded.card
    print(
        f"{path}: images float32 [batch, {card.in_channels}, {card.image_size}, {card.image_size}] in [0, 1] to logits "
        f"[batch, {card.num_classes}]; differs from the live network by {worst:.1g} of the largest logit",
        file=message_stream(path),
    )


@app.command(rich_help_panel=USE, epilog="Example: `fbsearch summary best.yaml --plot network.svg`")
def summary(
    file: Annotated[Path, typer.Argument(help="An export, or a trained model's folder or weights.")],
    rank: Annotated[int, typer.Option(min=1, help="Which configuration of an export.")] = 1,
    plot: Annotated[Path | None, typer.Option(help="Also draw the architecture into this SVG file.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Show the layers of a network with their shapes, parameters and FLOPs."""
    from fbsearch.cli.terminal import SafeConsole
    from fbsearch.files import STDOUT, write_output
    from fbsearch.pictures import architecture as drawings
    from fbsearch.winners.checkpoint import find_config

    if as_json and plot == STDOUT:
        raise ConfigError("--plot - and --json both write to standard output; name a file for the drawing")
    config, title = find_config(file, rank=rank)
    layers = drawings.list_layers(config.model, config.shape)
    if plot is not None:
        drawing = drawings.draw_architecture(config, layers, title=title)
        write_output(plot, drawing, kind=drawings.DRAWING, force=force, way_out="; --plot names another")
        if plot == STDOUT:
            return
    if as_json:
        print(json.dumps(drawings.layers_as_dict(layers) | dataclasses.asdict(config.shape)))
        return
    console = SafeConsole()
    console.print(drawings.layer_table(layers, title=title))
    if plot is not None:
        console.print(f"{plot}: the architecture", markup=False, highlight=False, soft_wrap=True)


@app.command(rich_help_panel=USE, epilog="Example: `fbsearch analyze best.yaml`")
def analyze(
    file: Annotated[Path, typer.Argument(help="A file that `fbsearch export` wrote.")],
    rank: Annotated[int, typer.Option(min=1, help="Which of its configurations.")] = 1,
    images: Annotated[int, typer.Option(min=1, max=64, help="Validation images to draw.")] = 8,
    output: Annotated[Path | None, typer.Option(help="Folder; without it: reports/<study>/analysis.")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights to load instead of training: safetensors, or a state dict from torch.save."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Compare a trained network with the untrained one stage by stage, and draw its fractal masks.

    An export has no weights: the network is trained for its epochs first, unless --checkpoint names a file of them.
    """
    from fbsearch.cli.terminal import SafeConsole
    from fbsearch.winners.analysis import analyze_export

    console = SafeConsole(highlight=False, markup=False)
    found = analyze_export(
        file,
        rank=rank,
        num_images=images,
        output=output,
        checkpoint=checkpoint,
        device=device,
        say=lambda text: console.print(text, soft_wrap=True),
    )
    for table in found.tables:
        console.print()
        console.print(table)
    for path in found.paths:
        console.print(f"{path}: written", soft_wrap=True)


@app.command(rich_help_panel=USE, epilog="Example: `fbsearch patterns --size 256`")
def patterns(
    output: Annotated[Path, typer.Option(help="The PNG file to write; - is standard output.")] = Path("patterns.png"),
    size: Annotated[int, typer.Option(min=1, max=2048, help="Pixels of one pattern.")] = 256,
    force: Force = False,
) -> None:
    """Draw the five fractal patterns side by side."""
    from fbsearch.files import message_stream
    from fbsearch.pictures.maps import draw_patterns

    draw_patterns(output, size=size, force=force)
    print(f"{output}: the five patterns at {size} x {size}", file=message_stream(output))


@app.command("measure-memory", hidden=True)
def measure_memory(device: str) -> None:
    """Internal: print the memory that the heaviest trial of a study, read from stdin as JSON, needs on a GPU."""
    import torch

    from fbsearch.config.study_file import StudyConfig
    from fbsearch.workers import probe

    config = StudyConfig.model_validate_json(sys.stdin.read())
    print(json.dumps(probe.measure_memory(config, torch.device(device))))
