"""Data sets: what is split, counted and put on the device, on scikit-learn's digits and torchvision's own formats."""

import dataclasses
import hashlib
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
from PIL import Image

from fbsearch.config.models import DataConfig
from fbsearch.data.dataset import Dataset, Split, batches, count_batches, load_dataset
from fbsearch.data.sources import peek_shape
from fbsearch.errors import DataError
from fbsearch.messages import ImageShape


def folder_config(root, **fields):
    return DataConfig(**{"name": "folder", "root": str(root), "image_size": 16, **fields})


def same_split(left: Split, right: Split) -> bool:
    return torch.equal(left.images_NCHW, right.images_NCHW) and torch.equal(left.labels_N, right.labels_N)


def same_data(left: Dataset, right: Dataset) -> bool:
    return left.info == right.info and same_split(left.train, right.train) and same_split(left.val, right.val)


def rows(split: Split) -> list[bytes]:
    return [image.numpy().tobytes() for image in split.images_NCHW]


# ------------------------------------------------------------------------------------------------------------- digits


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    truth = load_digits()
    data = load_dataset(DataConfig())
    parts = (data.train, data.val, data.test)
    ours = sorted((row, int(y)) for part in parts for row, y in zip(rows(part), part.labels_N, strict=True))
    images = np.rint(truth.images * 255 / 16).astype(np.uint8)
    assert ours == sorted((image.tobytes(), int(y)) for image, y in zip(images, truth.target, strict=True))


def test_digits_sizes_types_and_layout():
    data = load_dataset(DataConfig())
    info = data.info
    assert (info.num_train, info.num_val, info.num_test) == (1150, 287, 360)
    assert (info.num_classes, info.in_channels, info.image_size, info.num_broken) == (10, 1, 8, 0)
    assert info.class_names == tuple("0123456789")
    for part, count in ((data.train, 1150), (data.val, 287), (data.test, 360)):
        assert part.images_NCHW.shape == (count, 1, 8, 8) and part.images_NCHW.dtype == torch.uint8
        assert part.images_NCHW.is_contiguous(memory_format=torch.channels_last)
        assert part.labels_N.shape == (count,) and part.labels_N.dtype == torch.int64
    assert data.train.images_NCHW.max() == 255


def test_splits_are_stratified():
    data = load_dataset(DataConfig())
    everything = torch.cat([data.train.labels_N, data.val.labels_N, data.test.labels_N]).bincount()
    for part in (data.train, data.val, data.test):
        expected = everything * (len(part.labels_N) / 1797)
        assert (part.labels_N.bincount() - expected).abs().max() < 2


def test_split_seed_moves_validation_but_never_the_test_images():
    first, again, other = (load_dataset(DataConfig(seed=seed)) for seed in (0, 0, 1))
    assert same_data(first, again)
    assert not same_split(first.val, other.val)
    assert same_split(first.test, other.test)


def test_split_is_the_same_on_every_machine():
    data = load_dataset(DataConfig(limit=500))
    digest = hashlib.sha256(b"".join(rows(data.train) + rows(data.val) + rows(data.test))).hexdigest()
    assert digest[:16] == "7d42146b3106e15f"


def test_limit_is_stratified_and_taken_before_the_split():
    data = load_dataset(DataConfig(limit=100, validation_share=0.25))
    assert (data.info.num_train, data.info.num_val, data.info.num_test) == (75, 25, 360)
    assert data.train.labels_N.bincount().tolist() == pytest.approx([7.5] * 10, abs=1)
    assert data.val.labels_N.bincount().min() >= 2


def test_limit_of_two_a_class_leaves_one_in_each_split():
    data = load_dataset(DataConfig(limit=20))
    assert sorted(data.train.labels_N.tolist()) == sorted(data.val.labels_N.tolist()) == list(range(10))


def test_limit_below_two_a_class_is_refused():
    with pytest.raises(DataError, match=r"data\.limit: 19 is too few for 10 classes: write at least 20"):
        load_dataset(DataConfig(limit=19))


@pytest.mark.parametrize(("share", "num_val"), [(0.001, 10), (0.999, 1427), (0.5, 718)])
def test_validation_share_keeps_every_class_in_both_splits(share, num_val):
    data = load_dataset(DataConfig(validation_share=share))
    assert data.info.num_val == num_val
    assert data.train.labels_N.bincount(minlength=10).min() >= 1
    assert data.val.labels_N.bincount(minlength=10).min() >= 1


def test_image_size_resizes_like_pillow():
    small, large = load_dataset(DataConfig()), load_dataset(DataConfig(image_size=20))
    assert large.info.image_size == 20 and large.train.images_NCHW.shape[2:] == (20, 20)
    image = Image.fromarray(small.train.images_NCHW[0, 0].numpy()).resize((20, 20), Image.Resampling.BICUBIC)
    difference = large.train.images_NCHW[0, 0].int() - torch.from_numpy(np.array(image)).int()
    assert difference.abs().max() <= 2


def test_without_test_the_split_is_left_out_but_counted():
    data = load_dataset(DataConfig(), with_test=False)
    assert data.test is None and data.info.num_test == 360


@pytest.mark.slow
def test_digits_and_folder_import_neither_scikit_learn_nor_torchvision(make_tree):
    tree = make_tree(train={"a": 3, "b": 3})
    code = f"""
    import sys
    from fbsearch.config.models import DataConfig
    from fbsearch.data.dataset import load_dataset
    load_dataset(DataConfig())
    load_dataset(DataConfig(name="folder", root={str(tree)!r}, image_size=8))
    print([name for name in ("sklearn", "torchvision", "scipy", "pandas", "optuna") if name in sys.modules])
    """
    command = [sys.executable, "-W", "error", "-c", dedent(code)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout == "[]\n"


# ----------------------------------------------------------------------------------------------- statistics and batches


def test_normalise_gives_mean_zero_and_deviation_one_on_the_training_split():
    data = load_dataset(DataConfig())
    values = data.train.images_NCHW.double() / 255
    assert data.mean_C.dtype == data.std_C.dtype == torch.float32
    assert data.mean_C.item() == pytest.approx(values.mean().item(), rel=1e-6)
    assert data.std_C.item() == pytest.approx(values.std(correction=0).item(), rel=1e-6)
    x_NCHW = data.normalise(data.train.images_NCHW)
    assert x_NCHW.dtype == torch.float32 and x_NCHW.is_contiguous(memory_format=torch.channels_last)
    assert abs(x_NCHW.mean().item()) < 1e-5 and x_NCHW.std().item() == pytest.approx(1, abs=1e-3)


def test_normalise_of_a_constant_channel_is_finite(tmp_path):
    for name, red in (("a", 10), ("b", 200)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (4, 4), (red + i, 0, 77)).save(tmp_path / "train" / name / f"{i}.png")
    data = load_dataset(folder_config(tmp_path, image_size=None))
    x_NCHW = data.normalise(data.train.images_NCHW)
    assert x_NCHW.isfinite().all()
    assert x_NCHW[:, 1:].abs().max() < 1e-6


@pytest.mark.parametrize(
    ("num_images", "batch_size", "sizes"),
    [(1150, 64, [64] * 17 + [62]), (65, 64, [64]), (96, 64, [64]), (97, 64, [64, 33]), (20, 64, [20]), (5, 2, [2, 2])],
)
def test_batches_leave_out_a_small_rest(num_images, batch_size, sizes):
    images = torch.arange(num_images).remainder(256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    split = Split(images.contiguous(memory_format=torch.channels_last), torch.arange(num_images))
    given = list(batches(split, batch_size=batch_size, generator=torch.Generator().manual_seed(0)))
    assert [len(labels) for _, labels in given] == sizes
    assert count_batches(num_images, batch_size=batch_size) == len(sizes)
    for x_BCHW, labels_B in given:
        assert x_BCHW.dtype == torch.uint8 and x_BCHW.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(x_BCHW[:, 0, 0, 0].long(), labels_B.remainder(256))
    seen = torch.cat([labels for _, labels in given])
    assert len(seen.unique()) == len(seen) == sum(sizes)


def test_batches_order_comes_from_the_generator():
    split = load_dataset(DataConfig()).val

    def epoch(seed: int) -> list[int]:
        pairs = batches(split, batch_size=32, generator=torch.Generator().manual_seed(seed))
        return [int(label) for _, labels in pairs for label in labels]

    assert epoch(0) == epoch(0) != epoch(1)


# -------------------------------------------------------------------------------------------------------------- peeking


@pytest.mark.parametrize("image_size", [None, 20])
def test_peek_agrees_with_loading_digits(image_size):
    config = DataConfig(image_size=image_size)
    assert peek_shape(config) == load_dataset(config).info.shape


@pytest.mark.parametrize("image_size", [None, 16])
@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_peek_agrees_with_loading_a_folder(make_tree, mode, image_size):
    tree = make_tree(train={"a": 3, "b": 3, "c": 2}, test={"a": 1, "b": 1, "c": 1}, mode=mode)
    config = folder_config(tree, image_size=image_size)
    assert peek_shape(config) == load_dataset(config).info.shape


@pytest.mark.parametrize("seed", range(4))
def test_peek_agrees_with_loading_where_the_limit_decides_the_colour(make_tree, photos, seed):
    tree = make_tree(train={"a": 3, "b": 3}, mode="L")
    photos[0].resize((20, 20)).save(tree / "train" / "b" / "0001.png")
    config = folder_config(tree, limit=4, seed=seed)
    assert peek_shape(config) == load_dataset(config).info.shape


def test_peek_at_a_folder_reads_headers_only_and_writes_nothing(make_tree, cache):
    tree = make_tree(train={"a": 2, "b": 2}, val={"a": 1, "b": 1}, mode="L")
    for path in tree.glob("train/*/*"):
        path.write_bytes(path.read_bytes()[:-200])  # its header is whole, its pixels are not
    assert peek_shape(folder_config(tree, image_size=None)) == ImageShape(num_classes=2, in_channels=1, image_size=20)
    assert not cache.exists()


def test_peek_at_a_folder_passes_over_files_in_no_format(make_tree):
    tree = make_tree(train={"a": 2, "b": 2})
    (tree / "train" / "a" / "0000.png").write_text("no image")
    assert peek_shape(folder_config(tree, image_size=None)).image_size == 20


def test_peek_at_an_image_pillow_warns_of(make_tree):
    tree = make_tree(train={"a": 2, "b": 2}, mode="L")
    Image.new("1", (9500, 9500)).save(tree / "train" / "a" / "0000.png")
    assert peek_shape(folder_config(tree, image_size=None)).image_size == 9500


@pytest.mark.parametrize(
    ("parts", "fields", "message"),
    [
        ({}, {}, r"data\.root: there is no folder"),
        ({"cats": {"a": 1}}, {}, r"has no folder train/"),
        ({"train": {"a": 3}}, {}, r"holds one class, 'a'"),
        ({"train": {"a": 3, "b": 0}}, {}, r"holds no images"),
        ({"train": {"a": 3, "b": 1}}, {}, r"class 'b' has 1 training image"),
        ({"train": {"a": 3, "b": 3}, "test": {"a": 1}}, {}, r"test must have the classes of"),
        ({"train": {"a": 3, "b": 3}}, {"limit": 3}, r"data\.limit: 3 is too few"),
        ({"train": {"a": 3, "b": 3}, "size": (30, 20)}, {"image_size": None}, r"\(30 x 20\) is not square.*: 20`"),
    ],
)
def test_peek_refuses_a_folder_with_the_words_of_loading(make_tree, parts, fields, message):
    config = folder_config(make_tree(**parts), **fields)
    with pytest.raises(DataError, match=message) as loading:
        load_dataset(config)
    with pytest.raises(DataError) as peeking:
        peek_shape(config)
    assert str(peeking.value) == str(loading.value)


def test_peek_refuses_a_folder_without_one_good_image(make_tree):
    tree = make_tree(train={"a": 2, "b": 2})
    for path in tree.glob("train/*/*"):
        path.write_text("no image")
    with pytest.raises(DataError, match="none of the 4 image files under"):
        peek_shape(folder_config(tree))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mnist", (10, 1, 28)),
        ("fashion_mnist", (10, 1, 28)),
        ("kmnist", (10, 1, 28)),
        ("cifar10", (10, 3, 32)),
        ("cifar100", (100, 3, 32)),
        ("svhn", (10, 3, 32)),
    ],
)
def test_peek_needs_no_files_of_torchvisions_data_sets(tmp_path, name, shape):
    root = tmp_path / "none"
    assert dataclasses.astuple(peek_shape(DataConfig(name=name, root=str(root)))) == shape
    assert peek_shape(DataConfig(name=name, root=str(root), image_size=40)).image_size == 40
    assert not root.exists()


# ---------------------------------------------------------------------------------------------- torchvision's data sets


@pytest.fixture
def offline(monkeypatch):
    """Every connection is refused, as fast as it is without a network."""
    import urllib.request

    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it has read the variables already, if it exists


@pytest.mark.timeout(120)  # it must not wait for the network; importing torchvision takes long on a busy machine
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn"])
def test_download_without_a_network_says_what_works_without(tmp_path, offline, name):
    message = rf"data\.name: {name} is incomplete in {tmp_path}.*`name: digits`.*`name: folder`"
    with pytest.raises(DataError, match=message):
        load_dataset(DataConfig(name=name, root=str(tmp_path)))


def write_mnist(root: Path) -> Split:
    """MNIST's four files in its own format, with scikit-learn's digits at 28 pixels in them."""
    digits = load_dataset(DataConfig(image_size=28, limit=200)).train
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = digits.images_NCHW.numpy(), digits.labels_N.numpy().astype(np.uint8)
    for part in ("train", "t10k"):
        header = struct.pack(">iiii", 0x803, len(images), 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 0x801, len(labels)) + labels.tobytes())
    return digits


def test_mnist_is_read_from_its_files(tmp_path, offline):
    digits = write_mnist(tmp_path)
    config = DataConfig(name="mnist", root=str(tmp_path))
    data = load_dataset(config)
    assert peek_shape(config) == data.info.shape
    assert (data.info.num_train, data.info.num_val, data.info.num_test) == (128, 32, 160)
    assert (data.info.in_channels, data.info.image_size, data.info.num_classes) == (1, 28, 10)
    assert data.info.class_names[3] == "3 - three"
    assert same_split(data.test, digits)


def test_mnist_that_is_damaged_is_refused(tmp_path, offline):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="If its files there are damaged, delete them"):
        load_dataset(DataConfig(name="mnist", root=str(tmp_path)))


def test_cifar10_is_read_from_its_files(tmp_path, offline, monkeypatch):
    """The real format with torchvision's own reader; only the MD5 sums are those of the small files."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    truth = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
    batch = {"data": truth.reshape(40, -1), "labels": [i % 10 for i in range(40)]}
    md5 = write("data", batch)
    monkeypatch.setattr(CIFAR10, "train_list", [["data", md5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["data", md5]])
    meta = {"filename": "meta", "key": "label_names", "md5": write("meta", {"label_names": list("abcdefghij")})}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    config = DataConfig(name="cifar10", root=str(tmp_path), validation_share=0.25)
    data = load_dataset(config)
    assert peek_shape(config) == data.info.shape
    assert (data.info.num_train, data.info.num_val, data.info.class_names) == (30, 10, tuple("abcdefghij"))
    assert np.array_equal(data.test.images_NCHW.numpy(), truth)


def test_svhn_is_read_from_its_files(tmp_path, offline, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    truth = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 40), dtype=np.uint8)
    savemat(tmp_path / "svhn.mat", {"X": truth, "y": np.arange(40)[:, None] % 10 + 1})
    md5 = hashlib.md5((tmp_path / "svhn.mat").read_bytes()).hexdigest()
    monkeypatch.setattr(SVHN, "split_list", {part: ["", "svhn.mat", md5] for part in ("train", "test")})
    config = DataConfig(name="svhn", root=str(tmp_path))
    data = load_dataset(config)
    assert peek_shape(config) == data.info.shape
    assert data.info.class_names == tuple("0123456789") and data.info.in_channels == 3
    assert np.array_equal(data.test.images_NCHW.permute(2, 3, 1, 0).numpy(), truth)
    assert data.test.labels_N[9] == 0
