"""A trained network's answers: the right scores of a split, and of image files what it would say of the data set's."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig, TrialConfig
from fbsearch.data.dataset import Dataset, load_dataset
from fbsearch.errors import DataError
from fbsearch.training.evaluation import evaluate
from fbsearch.training.loop import train
from fbsearch.winners.checkpoint import ModelCard, TrainedModel, build_net, load_model, save_model
from fbsearch.winners.predict import compute_logits, find_images, predict, score, score_columns

DATA = DataConfig(limit=500)
Fbsearch = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DATA)


@pytest.fixture(scope="module")
def folder(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small network that was trained on digits for a moment."""
    folder = tmp_path_factory.mktemp("model")
    card = ModelCard(
        rank=1, trial=0, value=0.5, num_parameters=1, num_classes=10, in_channels=1, image_size=8, seed=0, data=DATA,
        model=ModelConfig(
            fractal_levels=(2, 1), base_channels=8, stem="conv3", pattern_resolution=8, drop_path="global"
        ),
        train=TrainConfig(epochs=6, learning_rate=0.005, batch_size=32, precision="fp32"),
        study="digits", keep_validation=True, class_names=digits.info.class_names,
        mean=tuple(digits.mean_C.tolist()), std=tuple(digits.std_C.tolist()),
    )  # fmt: skip
    torch.manual_seed(0)
    net = build_net(card)
    list(train(net, TrialConfig(data=DATA, model=card.model, train=card.train), digits))
    save_model(folder, net, card)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> TrainedModel:
    return load_model(folder)


@pytest.fixture(scope="module")
def files(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 360 test images as PNG files, in the order of the split."""
    folder = tmp_path_factory.mktemp("files")
    assert digits.test is not None
    for i, image_1HW in enumerate(digits.test.images_NCHW.numpy()):
        Image.fromarray(image_1HW[0]).save(folder / f"{i:03}.png")
    return folder


# Whole splits.


def test_score_agrees_with_the_trainer_and_keeps_what_was_said(model: TrainedModel, digits: Dataset) -> None:
    assert digits.test is not None
    scores = score(model.net, digits, digits.test, dtype=torch.float32)
    assert (scores.loss, scores.accuracy) == pytest.approx(evaluate(model.net, digits, digits.test))
    assert scores.num_images == 360 and scores.accuracy > 0.3
    logits_NK = compute_logits(model.net, digits.test.images_NCHW, normalise=digits.normalise, dtype=torch.float32)
    np.testing.assert_array_equal(scores.labels_N, digits.test.labels_N)
    np.testing.assert_array_equal(scores.said_N, logits_NK.argmax(dim=1))
    np.testing.assert_array_equal(scores.shares_NK, logits_NK.softmax(dim=1))


def test_score_columns_grow_with_their_depth(model: TrainedModel, digits: Dataset) -> None:
    assert digits.test is not None
    columns = score_columns(model.net, digits, digits.test, dtype=torch.float32)
    assert [column.depth for column in columns] == [1, 2, 0]
    sizes = [column.num_parameters for column in columns]
    assert sizes == sorted(sizes) and sizes[0] < sizes[1] < sizes[2]
    assert columns[-1].accuracy == score(model.net, digits, digits.test, dtype=torch.float32).accuracy
    assert columns[0].accuracy == evaluate(model.net.column(1), digits, digits.test)[1]
    assert all(0 < column.latency_ms < 1000 for column in columns)


# Image files.


def test_predict_files_gives_what_the_split_gives(model: TrainedModel, digits: Dataset, files: Path) -> None:
    """Every test image, through PNG and decoder, to the same probabilities as in the data set."""
    assert digits.test is not None
    answers = list(predict(model, find_images([files]), top=10))
    logits_NK = compute_logits(model.net, digits.test.images_NCHW, normalise=digits.normalise, dtype=torch.float32)
    for found, shares_K in zip(answers, logits_NK.softmax(dim=1).tolist(), strict=True):
        assert [name for name, _ in found.classes] == [str(k) for k in np.argsort(shares_K)[::-1]]
        assert [share for _, share in found.classes] == pytest.approx(sorted(shares_K, reverse=True), abs=1e-5)


def test_predict_resizes_and_greys_as_training_does(model: TrainedModel, files: Path, tmp_path: Path) -> None:
    image = Image.open(files / "000.png")
    image.resize((64, 64), Image.Resampling.NEAREST).convert("RGB").save(tmp_path / "large.png")
    (small,) = predict(model, [files / "000.png"], top=1)
    (large,) = predict(model, [tmp_path / "large.png"], top=1)
    assert small.classes[0][0] == large.classes[0][0]


def test_predict_names_what_cannot_be_read_and_goes_on(
    fbsearch: Fbsearch, folder: Path, files: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes((files / "001.png").read_bytes()[:60])
    images = [
        files / "000.png",
        tmp_path / "text.png",
        tmp_path / "cut.png",
        tmp_path / "nowhere.png",
        files / "001.png",
    ]
    code, output, errors = fbsearch("predict", folder, *images, "--device", "cpu")
    assert code == 1
    assert [line.split(":")[0] for line in output.splitlines()] == [str(images[0]), str(images[4])]
    assert errors.count("error: ") == 3
    assert f"error: {images[1]}: cannot be read: in no format of JPEG, PNG, " in errors
    assert f"error: {images[2]}: cannot be read: " in errors
    assert f"error: {images[3]}: cannot be opened: No such file or directory\n" in errors

    code, output, _ = fbsearch("predict", folder, *images, "--json", "--top", 2)
    found = json.loads(output)["images"]
    assert code == 1 and [one["image"] for one in found] == [str(path) for path in images]
    assert ["error" in one for one in found] == [False, True, True, True, False]
    assert len(found[0]["classes"]) == 2 and 0 < found[0]["classes"][0]["probability"] <= 1


def test_predict_a_folder_takes_its_images_and_more_classes_than_there_are(
    fbsearch: Fbsearch, folder: Path, files: Path
) -> None:
    code, output, errors = fbsearch("predict", folder / "model.safetensors", files, "--top", 99)
    assert (code, errors) == (0, "") and len(output.splitlines()) == 360
    assert output.splitlines()[0].count("%") == 10


def test_find_images_passes_over_what_is_no_image_and_sorts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no image .JPEG, .* in this folder"):
        find_images([tmp_path])
    for name in ("b/2.png", "a/1.JPG", "notes.txt", ".hidden.png", ".git/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path / "notes.txt", tmp_path])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["notes.txt", "a/1.JPG", "b/2.png"]


def test_predict_without_a_model_says_so(fbsearch: Fbsearch, tmp_path: Path) -> None:
    code, _, errors = fbsearch("predict", tmp_path, "x.png")
    assert code == 1 and f"there is no {tmp_path}/model.safetensors; `fbsearch train` writes it" in errors
