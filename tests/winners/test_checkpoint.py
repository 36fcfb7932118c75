"""Networks on disk: what is written is read back to the last bit, and what is damaged or another's is refused."""

import json
import pickle
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fbsearch.config.choices import ModelFormat
from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig
from fbsearch.data.dataset import load_dataset
from fbsearch.errors import ConfigError, StorageError
from fbsearch.files import check_output, write_whole
from fbsearch.winners.checkpoint import (
    ModelCard,
    TrainedModel,
    build_net,
    find_config,
    load_model,
    load_state,
    save_model,
    save_state,
)
from fbsearch.winners.model_export import EXPORT_ENDINGS, EXPORTED_MODEL, export_model

PLACE = "give the same command again"


def make_card(*, levels: tuple[int, ...] = (1, 2), channels: int = 8, **model: Any) -> ModelCard:
    return ModelCard(
        rank=1, trial=3, value=0.9, num_parameters=1, num_classes=10, in_channels=1, image_size=8, seed=4,
        data=DataConfig(), train=TrainConfig(learning_rate=0.0123),
        model=ModelConfig(fractal_levels=levels, base_channels=channels, stem="conv3", pattern_resolution=8, **model),
        study="digits", keep_validation=False, class_names=tuple("0123456789"), mean=(0.3,), std=(0.37,),
    )  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> TrainedModel:
    """A net with weights, statistics and masks unlike fresh ones, as it is read from disk."""
    card = make_card()
    torch.manual_seed(0)
    net = build_net(card).train()
    net(torch.randn(32, 1, 8, 8))
    save_model(tmp_path / "model", net, card)
    return load_model(tmp_path / "model")


def test_model_comes_back_to_the_last_bit(model: TrainedModel) -> None:
    torch.manual_seed(0)
    net = build_net(model.card).train()
    net(torch.randn(32, 1, 8, 8))
    found = model.net.state_dict()
    assert found.keys() == net.state_dict().keys()
    assert all(torch.equal(value, found[name]) for name, value in net.state_dict().items())
    assert model.card == make_card() and not model.net.training
    assert load_model(model.folder / "model.safetensors").card == model.card


def test_model_normalises_as_the_data_set_it_was_trained_on(tmp_path: Path) -> None:
    data = load_dataset(DataConfig())
    statistics = {"mean": tuple(data.mean_C.tolist()), "std": tuple(data.std_C.tolist())}
    card = make_card().model_copy(update=statistics)
    save_model(tmp_path, build_net(card), card)
    assert data.test is not None
    images_NCHW = data.test.images_NCHW
    assert torch.equal(load_model(tmp_path).normalise(images_NCHW), data.normalise(images_NCHW))


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_model_weights_cut_off_are_refused(model: TrainedModel, share: float) -> None:
    path = model.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ConfigError, match=r"model.safetensors: is no safetensors file, cut off or damaged"):
        load_model(model.folder)


def test_model_weights_of_another_network_are_named(model: TrainedModel) -> None:
    save_model(model.folder / "wide", build_net(make_card(channels=12)), make_card(channels=12))
    (model.folder / "wide" / "model.yaml").write_bytes((model.folder / "model.yaml").read_bytes())
    with pytest.raises(ConfigError, match=r"another network .*: classifier.1.bias has shape \[12\], not \[8\]"):
        load_model(model.folder / "wide")
    save_model(model.folder / "deep", build_net(make_card(levels=(2, 2))), make_card())
    with pytest.raises(ConfigError, match=r"has no fractal_stages.0.0.base_conv.bias"):
        load_model(model.folder / "deep")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("fbsearch-model/1", "fbsearch-model/9", "its format is 'fbsearch-model/9', this fbsearch reads"),
        ("format: fbsearch-model/1", "name: digits", "it is no model's card"),
        ("seed: 4", "seed: four", "seed: input should be a valid integer, found 'four'"),
        ("mean: [0.3]", "mean: [0.3, 0.3]", "mean: has 2 entries, this network needs 1"),
        ("study: digits", "study: [", "not YAML"),
        ("std: [0.37]", "std: [0]", "std.0: input should be greater than 0"),
        ("num_classes: 10", "num_classes: 1000000000000", "num_classes: input should be less than or equal to"),
        ("image_size: 8", "image_size: -1", "image_size: input should be greater than or equal to 1"),
        ("base_channels: 8", "base_channels: 4096", "do not belong together: more parameters than there are weights"),
        ("in_channels: 1\n", "in_channels: 1024\n", "mean: has 1 entries, this network needs 1024"),
    ],
)
def test_model_card_that_cannot_be_used_says_why(model: TrainedModel, before: str, after: str, said: str) -> None:
    path = model.folder / "model.yaml"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(ConfigError) as caught:
        load_model(model.folder)
    assert said in str(caught.value) and str(path.parent) in str(caught.value)


def write_weights(path: Path, header: dict[str, Any], num_bytes: int) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(num_bytes))


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0", "C64", "BOOL", "X"])
def test_model_weights_of_a_strange_type_are_refused(model: TrainedModel, dtype: str) -> None:
    path = model.folder / "model.safetensors"
    name, shape = "classifier.1.bias", [8]
    size = {"F4": 4, "C64": 64}.get(dtype, 8)
    write_weights(path, {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}, size)
    with pytest.raises(ConfigError, match=r"model.safetensors: (is no safetensors file|belongs to another network)"):
        load_model(model.folder)


def test_model_weights_that_are_complex_or_have_a_strange_name_are_named(model: TrainedModel) -> None:
    weights = {name: value.contiguous() for name, value in model.net.state_dict().items()}
    path = model.folder / "model.safetensors"
    save_file(weights | {"a\x1b[31m\nb": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match=r"has a\\x1b\[31m\\nb, which this network does not have"):
        load_model(model.folder)
    save_file(weights | {"classifier.1.bias": torch.zeros(8, dtype=torch.complex64)}, path)
    with pytest.raises(ConfigError, match=r"classifier.1.bias is torch.complex64, not torch.float32"):
        load_model(model.folder)


def test_model_that_is_not_there_says_what_is(tmp_path: Path, model: TrainedModel) -> None:
    with pytest.raises(ConfigError, match=r"`fbsearch train` writes it when a seed is finished"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=f"name one of {model.folder}"):
        load_model(tmp_path)


def test_find_config_reads_a_model_and_refuses_other_files(model: TrainedModel, tmp_path: Path) -> None:
    assert find_config(model.folder, rank=1) == (model.card, "digits, rank 1, seed 4")
    (tmp_path / "study.yaml").write_text("name: digits")
    with pytest.raises(ConfigError, match="it is no export"):
        find_config(tmp_path / "study.yaml", rank=1)


# The state of a run.


def test_state_comes_back(tmp_path: Path) -> None:
    tensor = torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last)
    save_state(tmp_path / "a" / "x.pt", {"weights": tensor, "epoch": 3})
    found = load_state(tmp_path / "a" / "x.pt", keys=["weights"])
    assert torch.equal(found["weights"], tensor) and found["weights"].stride() == tensor.stride()
    assert found["epoch"] == 3
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.pt"]


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.7, 0.99])
def test_state_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "x.pt"
    save_state(path, {"weights": torch.randn(100)})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ConfigError, match=r"x.pt: cannot be read, it is cut off or damaged .*delete it to train"):
        load_state(path, keys=[])


class Bomb:
    """Writes a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_state_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, how: str) -> None:
    path, mark = tmp_path / "x.pt", tmp_path / "mark"
    content = {"format": "fbsearch-training/1", "bomb": Bomb(str(mark))}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_state(path, keys=[])
    assert not mark.exists()


def test_state_of_a_newer_format_or_without_its_parts_is_refused(tmp_path: Path) -> None:
    torch.save({"format": "fbsearch-training/2"}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match=r"format is 'fbsearch-training/2', this fbsearch reads"):
        load_state(tmp_path / "x.pt", keys=[])
    save_state(tmp_path / "y.pt", {})
    with pytest.raises(ConfigError, match=r"y.pt: its format"):
        load_state(tmp_path / "y.pt", keys=["state"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_state_on_a_full_disk_leaves_the_previous_one_whole(small_disk: Path) -> None:
    path = small_disk / "x.pt"
    first = torch.randn(100_000)
    save_state(path, {"weights": first})
    with pytest.raises(StorageError, match=f"x.pt: cannot be written: No space left on device.*{PLACE}"):
        save_state(path, {"weights": torch.randn(200_000)})
    assert torch.equal(load_state(path, keys=[])["weights"], first)
    assert [file.name for file in small_disk.iterdir()] == ["x.pt"]


def test_write_beyond_the_largest_file_leaves_the_previous_one_whole(tmp_path: Path) -> None:
    """The same where no disk can be mounted: the limit of a file's size also stops a write in its middle."""
    path = tmp_path / "x"
    write_whole(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match="x: cannot be written: File too large"):
            write_whole(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_write_into_a_file_as_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        write_whole(tmp_path / "x" / "y", b"")


# Exported forms.


def live_logits(model: TrainedModel, images_BCHW: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model.net(model.normalise(images_BCHW)))


@pytest.mark.slow
def test_export_torch_program_gives_the_same_logits(model: TrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "out" / "model.pt2"
    assert export_model(model, path, kind="torch") < 1e-4
    files = {"model.yaml": ""}
    program = torch.export.load(path, extra_files=files).module()
    for batch in (1, 4, 33):
        images_BCHW = torch.randint(0, 256, (batch, 1, 8, 8), dtype=torch.uint8)
        torch.testing.assert_close(program(images_BCHW / 255), live_logits(model, images_BCHW), rtol=1e-4, atol=1e-4)
    assert files["model.yaml"] == (model.folder / "model.yaml").read_text()
    assert [file.name for file in path.parent.iterdir()] == ["model.pt2"]
    check_output(path, kind=EXPORTED_MODEL, force=False)  # it may be written again


@pytest.mark.slow
def test_export_onnx_gives_the_same_logits(model: TrainedModel, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    assert export_model(model, path, kind="onnx") < 1e-4
    check_output(path, kind=EXPORTED_MODEL, force=False)  # it may be written again
    session = onnxruntime.InferenceSession(path)
    assert session.get_modelmeta().custom_metadata_map["model.yaml"] == (model.folder / "model.yaml").read_text()
    for batch in (1, 4, 33):
        images_BCHW = torch.randint(0, 256, (batch, 1, 8, 8), dtype=torch.uint8)
        (logits_BK,) = session.run(["logits"], {"images": (images_BCHW / 255).numpy()})
        np.testing.assert_allclose(logits_BK, live_logits(model, images_BCHW).numpy(), rtol=1e-4, atol=1e-4)


def test_export_onnx_without_its_packages_names_them(model: TrainedModel) -> None:
    with pytest.raises(ConfigError, match=r"onnx needs onnx_that_nobody_has: pip install 'fbsearch\[onnx\]'"):
        export_model(model, model.folder / "model.onnx", kind="onnx", packages=["onnx_that_nobody_has"])


@pytest.mark.slow
def test_export_whose_outputs_differ_is_not_written(model: TrainedModel) -> None:
    path = model.folder / f"model{EXPORT_ENDINGS[ModelFormat.TORCH]}"
    with pytest.raises(ConfigError, match="not written: its outputs differ"):
        export_model(model, path, kind="torch", tolerance=-1.0)
    assert not path.exists()
