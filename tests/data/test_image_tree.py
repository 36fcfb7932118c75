"""Image trees, decoding and the cache, on real files written with Pillow, and by real processes."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fbsearch.config.models import DataConfig
from fbsearch.data.dataset import Dataset, Split, load_dataset
from fbsearch.data.decode import Budget, decode_image
from fbsearch.errors import DataError

CIFAR_ZIP = Path(__file__).parents[3] / "shared" / "data" / "cifar10-images.zip"


def folder_config(root, **fields):
    return DataConfig(**{"name": "folder", "root": str(root), "image_size": 16, **fields})


def same_split(left: Split, right: Split) -> bool:
    return torch.equal(left.images_NCHW, right.images_NCHW) and torch.equal(left.labels_N, right.labels_N)


def same_data(left: Dataset, right: Dataset) -> bool:
    return left.info == right.info and same_split(left.train, right.train) and same_split(left.val, right.val)


def rows(split: Split) -> list[bytes]:
    return [image.numpy().tobytes() for image in split.images_NCHW]


# --------------------------------------------------------------------------------------------------- image trees


def test_folder_gives_the_pixels_pillow_gives(make_tree):
    tree = make_tree(train={"b": 4, "a": 3}, val={"b": 2, "a": 2}, test={"b": 1, "a": 1}, size=(40, 30), end=".jpg")
    data = load_dataset(folder_config(tree))
    info = data.info
    assert info.class_names == ("a", "b") and (info.in_channels, info.image_size) == (3, 16)
    assert (info.num_train, info.num_val, info.num_test) == (7, 4, 2)
    files = sorted((tree / "train" / "a").iterdir()) + sorted((tree / "train" / "b").iterdir())
    truth = [np.array(ImageOps.fit(Image.open(f), (16, 16), Image.Resampling.BICUBIC)) for f in files]
    assert np.array_equal(data.train.images_NCHW.permute(0, 2, 3, 1).numpy(), np.stack(truth))
    assert data.train.labels_N.tolist() == [0] * 3 + [1] * 4
    assert data.train.images_NCHW.is_contiguous(memory_format=torch.channels_last)


def test_folder_fingerprint_is_of_pixels_and_labels_not_of_times_and_places(make_tree, tmp_path):
    tree = make_tree(train={"a": 3, "b": 3}, val={"a": 1, "b": 1}, test={"a": 1, "b": 1})
    first = load_dataset(folder_config(tree)).info
    copied = shutil.copytree(tree, tmp_path / "copied", copy_function=shutil.copyfile)
    assert load_dataset(folder_config(copied)).info == first
    image = copied / "train" / "a" / "0000.png"
    Image.open(copied / "val" / "b" / "0000.png").save(image)
    other = load_dataset(folder_config(copied)).info
    assert other != first and dataclasses.replace(other, fingerprint=first.fingerprint) == first
    shutil.copyfile(tree / "train" / "a" / "0000.png", image)
    (copied / "train" / "b" / "0000.png").rename(copied / "train" / "a" / "0003.png")  # the same pixels in this order
    assert load_dataset(folder_config(copied)).info.fingerprint not in (first.fingerprint, other.fingerprint)


def test_folder_without_val_is_split(make_tree):
    data = load_dataset(folder_config(make_tree(train={"a": 20, "b": 10})))
    assert data.train.labels_N.bincount().tolist() == [16, 8] and data.val.labels_N.bincount().tolist() == [4, 2]
    assert data.test is None and data.info.num_test == 0
    assert not set(rows(data.train)) & set(rows(data.val))


def test_folder_root_is_relative_to_the_current_directory(make_tree, monkeypatch):
    monkeypatch.chdir(make_tree(train={"a": 2, "b": 2}).parent)
    assert load_dataset(folder_config("tree")).info.num_train == 2


def test_folder_passes_over_hidden_and_other_files(make_tree):
    tree = make_tree(train={"a": 2, "b": 2})
    (tree / "train" / "a" / "notes.txt").write_text("no image")
    (tree / "train" / "a" / ".hidden.png").write_text("no image")
    (tree / "train" / ".cache").mkdir()
    (tree / "train" / "LICENSE.png").write_text("in no class")
    (tree / "train" / "a" / "more").mkdir()
    (tree / "train" / "a" / "0000.png").rename(tree / "train" / "a" / "more" / "0000.PNG")
    info = load_dataset(folder_config(tree)).info
    assert info.class_names == ("a", "b") and info.num_train + info.num_val == 4


def test_folder_limit_decodes_only_what_it_takes(make_tree, cache):
    tree = make_tree(train={"a": 30, "b": 10})
    messages: list[str] = []
    first = load_dataset(folder_config(tree, limit=8), on_progress=messages.append)
    assert first.train.labels_N.bincount().tolist() == [5, 1] and first.val.labels_N.bincount().tolist() == [1, 1]
    assert messages == ["decoded 8 train images"]
    assert [np.load(path).shape for path in cache.glob("*/images.npy")] == [(8, 16, 16, 3)]
    assert same_data(first, load_dataset(folder_config(tree, limit=8)))
    assert not same_split(first.train, load_dataset(folder_config(tree, limit=8, seed=1)).train)


def test_folder_without_test_leaves_it_undecoded(make_tree):
    tree = make_tree(train={"a": 2, "b": 2}, test={"a": 3, "b": 3})
    messages: list[str] = []
    data = load_dataset(folder_config(tree), with_test=False, on_progress=messages.append)
    assert data.test is None and data.info.num_test == 6
    assert messages == ["decoded 4 train images"]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3)])
def test_folder_channels_follow_the_files_modes(make_tree, mode, channels):
    data = load_dataset(folder_config(make_tree(train={"a": 3, "b": 3}, mode=mode)))
    assert data.info.in_channels == data.train.images_NCHW.shape[1] == channels


def test_folder_with_one_colour_image_is_colour(make_tree, photos):
    tree = make_tree(train={"a": 3, "b": 3}, val={"a": 1, "b": 1}, mode="L")
    photos[0].resize((20, 20)).save(tree / "train" / "b" / "z.png")
    data = load_dataset(folder_config(tree))
    assert data.info.in_channels == data.val.images_NCHW.shape[1] == 3


def test_folder_training_images_decide_that_all_are_grey(make_tree, photos):
    tree = make_tree(train={"a": 3, "b": 3}, test={"a": 1, "b": 1}, mode="L")
    photos[0].resize((20, 20)).save(tree / "test" / "b" / "z.png")
    data = load_dataset(folder_config(tree))
    assert data.info.in_channels == data.test.images_NCHW.shape[1] == 1


def test_folder_without_image_size_keeps_pixels(make_tree):
    tree = make_tree(train={"a": 2, "b": 2}, val={"a": 1, "b": 1})
    data = load_dataset(folder_config(tree, image_size=None))
    assert data.info.image_size == 20
    truth = np.array(Image.open(tree / "train" / "a" / "0000.png"))
    assert np.array_equal(data.train.images_NCHW[0].permute(1, 2, 0).numpy(), truth)


@pytest.mark.skipif(not CIFAR_ZIP.exists(), reason=f"{CIFAR_ZIP} is not here")
def test_folder_reads_cifar10(tmp_path):
    with zipfile.ZipFile(CIFAR_ZIP) as archive:
        names = [name for name in archive.namelist() if name.endswith("00.jpg")]
        archive.extractall(tmp_path, names)
    data = load_dataset(folder_config(tmp_path, image_size=None, limit=300))
    assert data.info.num_classes == 10 and (data.info.in_channels, data.info.image_size) == (3, 32)
    assert (data.info.num_train, data.info.num_val) == (240, 60)
    assert data.mean_C.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.03)
    assert data.std_C.tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=0.03)


# ------------------------------------------------------------------------------------------------------ decoding


def encoded(image: Image.Image, tmp_path: Path, end: str, **options) -> bytes:
    path = tmp_path / f"image{end}"
    image.save(path, **options)
    return path.read_bytes()


def test_decode_keeps_the_high_byte_of_16_bits(tmp_path):
    values = np.array([[0, 255], [256, 65535]], dtype=np.uint16)
    for end in (".png", ".tif", ".pgm"):
        content = encoded(Image.fromarray(values), tmp_path, end)
        assert decode_image(content, side=None, channels=1)[..., 0].tolist() == [[0, 0], [1, 255]]
    assert decode_image(content, side=None, channels=3).shape == (2, 2, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_decode_refuses_pixels_without_a_known_range(tmp_path, dtype):
    content = encoded(Image.fromarray(np.full((2, 2), 70_000, dtype=dtype)), tmp_path, ".tif")
    with pytest.raises(ValueError, match="save it with 8 or 16 bits"):
        decode_image(content, side=None, channels=1)


def test_decode_makes_transparency_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (200, 100, 0, 255))
    truth = [[[255, 255, 255], [200, 100, 0]]]
    assert decode_image(encoded(image, tmp_path, ".png"), side=None, channels=3).tolist() == truth
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 200, 100, 0])
    palette.putpixel((1, 0), 1)
    for options in ({"transparency": 0}, {"transparency": b"\x00\xff"}):
        content = encoded(palette, tmp_path, ".png", **options)
        assert decode_image(content, side=None, channels=3).tolist() == truth


def test_decode_turns_the_image_as_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image = Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8))
    for end in (".png", ".tif"):
        content = encoded(image, tmp_path, end, exif=exif)
        assert decode_image(content, side=None, channels=1)[..., 0].tolist() == [[4, 1], [5, 2], [6, 3]]


def test_decode_reads_cmyk(tmp_path, photos):
    photo = photos[1].crop((0, 0, 64, 64))
    content = encoded(photo.convert("CMYK"), tmp_path, ".jpg", quality=95)
    difference = decode_image(content, side=None, channels=3).astype(int) - np.array(photo)
    assert np.abs(difference).mean() < 4


def test_decode_takes_the_first_frame(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (7, 99)]
    content = encoded(frames[0], tmp_path, ".gif", save_all=True, append_images=frames[1:])
    assert np.unique(decode_image(content, side=None, channels=1)).tolist() == [7]


def test_decode_crops_around_the_centre(tmp_path):
    values = np.repeat(np.array([[0] * 10 + [50] * 10 + [200] * 10], dtype=np.uint8), 10, axis=0)
    image_HWC = decode_image(encoded(Image.fromarray(values), tmp_path, ".png"), side=5, channels=1)
    assert image_HWC.shape == (5, 5, 1)
    assert np.abs(image_HWC[:, 1:-1] - 50.0).max() <= 3  # the filter sees a little beyond the crop's edge


def test_folder_nested_deeper_than_python_calls_is_read(make_tree):
    tree = make_tree(train={"a": 3, "b": 3})
    deep = tree / "train" / "a"
    for _ in range(1200):
        deep /= "d"
        deep.mkdir()
    (tree / "train" / "a" / "0000.png").rename(deep / "0000.png")
    info = load_dataset(folder_config(tree)).info
    subprocess.run(["rm", "-r", tree / "train" / "a" / "d"], check=True)  # pytest would call itself too deep
    assert info.num_train + info.num_val == 6


# ----------------------------------------------------------------------------------------------------- bad trees


def test_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=rf"data\.root: there is no folder {tmp_path}/none"):
        load_dataset(folder_config(tmp_path / "none"))


@pytest.mark.parametrize("name", ["folder", pytest.param("mnist", marks=pytest.mark.slow)])
@pytest.mark.parametrize("root", ["~nobody-at-all/x", "a\0b", "circle/x"])
def test_root_that_is_no_path_is_refused(tmp_path, monkeypatch, name, root):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(DataError, match=r"data\.root: .* cannot be used: "):
        load_dataset(DataConfig(name=name, root=root))


def test_folder_without_train_is_refused(make_tree):
    tree = make_tree(cats={"a": 1}, dogs={"a": 1})
    with pytest.raises(DataError, match=r"has no folder train/ \(found: cats, dogs\)"):
        load_dataset(folder_config(tree))


def test_folder_with_no_class_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"data\.root: .*/train holds no class folders"):
        load_dataset(folder_config(tmp_path))


def test_folder_with_one_class_is_refused(make_tree):
    with pytest.raises(DataError, match=r"data\.root: .*/train holds one class, 'only'"):
        load_dataset(folder_config(make_tree(train={"only": 3})))


def test_folder_with_an_empty_class_is_refused(make_tree):
    with pytest.raises(DataError, match=r"data\.root: the class folder .*/train/b holds no images"):
        load_dataset(folder_config(make_tree(train={"a": 3, "b": 0})))


def test_folder_with_one_image_in_a_class_is_refused_unless_val_is_given(make_tree):
    tree = make_tree(train={"a": 3, "b": 1})
    with pytest.raises(DataError, match=r"class 'b' has 1 training image.*at least 2 .*val/"):
        load_dataset(folder_config(tree))
    make_tree(val={"a": 1, "b": 1})
    assert load_dataset(folder_config(tree)).info.num_train == 4


@pytest.mark.parametrize("part", ["val", "test"])
def test_folder_whose_parts_have_other_classes_is_refused(make_tree, part):
    tree = make_tree(train={"a": 3, "b": 3}, **{part: {"b": 1, "c": 1}})
    with pytest.raises(DataError, match=rf"{tree}/{part} must have the classes of .*lacks 'a', has 'c' besides"):
        load_dataset(folder_config(tree))


def test_folder_of_different_sizes_needs_an_image_size(make_tree, photos):
    tree = make_tree(train={"a": 3, "b": 3})
    photos[0].crop((0, 0, 24, 24)).save(tree / "train" / "b" / "0001.png")
    with pytest.raises(DataError, match=r"data\.image_size: .*b/0001.png \(24 x 24\) .*such as `image_size: 24`"):
        load_dataset(folder_config(tree, image_size=None))


def test_folder_of_oblong_images_needs_an_image_size(make_tree):
    tree = make_tree(train={"a": 2, "b": 2}, size=(30, 20))
    with pytest.raises(DataError, match=r"\(30 x 20\) is not square.*`image_size: 20`"):
        load_dataset(folder_config(tree, image_size=None))


def test_folder_whose_test_has_another_size_needs_an_image_size(make_tree):
    make_tree(train={"a": 2, "b": 2})
    tree = make_tree(test={"a": 2, "b": 2}, size=(24, 24))
    with pytest.raises(DataError, match=r"data\.image_size: .* train/ has 20 pixels and test/ 24"):
        load_dataset(folder_config(tree, image_size=None))


def test_folder_passes_over_links_to_nothing(make_tree):
    tree = make_tree(train={"a": 3, "b": 3})
    (tree / "train" / "b" / "link.png").symlink_to("gone.png")
    info = load_dataset(folder_config(tree)).info
    assert info.num_train + info.num_val == 6


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_folder_with_unreadable_file_is_refused_even_if_broken_are_skipped(make_tree):
    tree = make_tree(train={"a": 3, "b": 3})
    (tree / "train" / "b" / "0001.png").chmod(0)
    with pytest.raises(DataError, match=r"data\.root: cannot open .*/b/0001.png \(Permission denied\)"):
        load_dataset(folder_config(tree, skip_broken=True))


def break_image(path: Path, how: str) -> None:
    content = path.read_bytes()
    damaged = {"empty": b"", "text": b"no image at all", "cut": content[: len(content) // 2]}[how]
    path.write_bytes(damaged)


@pytest.mark.parametrize("how", ["empty", "text", "cut"])
@pytest.mark.parametrize("end", [".png", ".jpg"])
def test_broken_image_is_named(make_tree, how, end):
    tree = make_tree(train={"a": 3, "b": 3}, end=end)
    break_image(tree / "train" / "b" / f"0001{end}", how)
    with pytest.raises(DataError, match=rf"data\.root: .*/b/0001{end} is a broken image .*`skip_broken: true`"):
        load_dataset(folder_config(tree))


def test_postscript_that_is_called_an_image_starts_no_ghostscript(make_tree, tmp_path, monkeypatch, photos):
    tree = make_tree(train={"a": 3, "b": 3})
    photos[0].resize((20, 20)).save(tree / "train" / "b" / "0001.png", format="EPS")
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"0001.png is a broken image \(in no format of JPEG, PNG, "):
        load_dataset(folder_config(tree))
    assert not (tmp_path / "started").exists()


def test_image_of_too_many_pixels_is_broken_before_it_is_decoded(make_tree):
    tree = make_tree(train={"a": 3, "b": 3})
    Image.new("1", (13_300, 13_300)).save(tree / "train" / "b" / "0001.png")
    for limit, pixels in ((100_000_000, "100,000,000"), (399, "399")):
        with pytest.raises(DataError, match=rf"broken image \(it has [\d,]+ pixels, `data.max_pixels` is {pixels}\)"):
            load_dataset(folder_config(tree, max_pixels=limit))
    assert load_dataset(folder_config(tree, skip_broken=True)).info.num_broken == 1


def test_budget_is_never_exceeded_and_a_larger_piece_is_alone():
    budget, held, most = Budget(10), [], []

    def work(amount: int) -> None:
        with budget.take(amount):
            held.append(amount)
            most.append(sum(held))
            time.sleep(0.001)
            held.remove(amount)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [3, 4, 30, 2, 5, 10, 1, 6] * 8))
    assert all(total <= 10 or total == 30 for total in most) and held == []


def test_broken_images_are_skipped_and_counted_if_wanted(make_tree):
    tree = make_tree(train={"a": 4, "b": 4}, test={"a": 2, "b": 2})
    whole = load_dataset(folder_config(tree, seed=3))
    truth = set(rows(whole.train) + rows(whole.val))
    break_image(tree / "train" / "a" / "0000.png", "cut")
    break_image(tree / "train" / "b" / "0003.png", "text")
    break_image(tree / "test" / "b" / "0001.png", "empty")
    for _ in ("decoded", "cached"):
        data = load_dataset(folder_config(tree, seed=3, skip_broken=True))
        assert data.info.num_broken == 3
        assert data.info.num_train + data.info.num_val == 6 and data.info.num_test == 3
        assert set(rows(data.train) + rows(data.val)) < truth
    with pytest.raises(DataError, match="is a broken image"):
        load_dataset(folder_config(tree, seed=3))


def test_class_that_loses_all_images_is_named(make_tree):
    tree = make_tree(train={"a": 3, "b": 2})
    for name in ("0000.png", "0001.png"):
        break_image(tree / "train" / "b" / name, "cut")
    with pytest.raises(DataError, match=r"class 'b' has 0 training image"):
        load_dataset(folder_config(tree, skip_broken=True))


def test_tree_without_one_good_image_is_refused(make_tree):
    tree = make_tree(train={"a": 2, "b": 2})
    for path in tree.glob("train/*/*"):
        break_image(path, "text")
    with pytest.raises(DataError, match=r"none of the 4 image files under .*/train can be decoded"):
        load_dataset(folder_config(tree, skip_broken=True))


# ----------------------------------------------------------------------------------------------------- the cache


def load_and_listen(config: DataConfig) -> tuple[Dataset, list[str]]:
    messages: list[str] = []
    return load_dataset(config, on_progress=messages.append), messages


def test_cache_saves_the_second_decoding_until_something_changes(make_tree):
    tree = make_tree(train={"a": 3, "b": 3})
    first, messages = load_and_listen(folder_config(tree))
    assert messages == ["decoded 6 train images"]
    second, messages = load_and_listen(folder_config(tree, seed=5))
    assert messages == [] and second.info == first.info
    assert load_and_listen(folder_config(tree, image_size=8))[1] == ["decoded 6 train images"]
    os.utime(tree / "train" / "a" / "0000.png", ns=(1, 1))
    assert load_and_listen(folder_config(tree))[1] == ["decoded 6 train images"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty", "no_images", "no_index", "index"])
def test_cache_that_is_damaged_is_built_anew(make_tree, cache, damage):
    config = folder_config(make_tree(train={"a": 3, "b": 3}))
    truth, _ = load_and_listen(config)
    images, index = next(cache.glob("*/images.npy")), next(cache.glob("*/entry.json"))
    content = images.read_bytes()
    if damage == "no_images":
        images.unlink()
    elif damage == "no_index":
        index.unlink()
    elif damage == "index":
        index.write_text("[]")
    else:
        flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
        images.write_bytes({"cut": content[:-9], "flipped": flipped, "text": b"junk" * 99, "empty": b""}[damage])
    data, messages = load_and_listen(config)
    assert same_data(data, truth)
    assert "is damaged: decoding again" in messages[0] and messages[-1] == "decoded 6 train images"
    assert load_and_listen(config)[1] == []


def craft_npy(path: Path, header: str) -> None:
    path.write_bytes(
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(9 * 16 * 16 * 3)
    )


@pytest.mark.parametrize(
    "how", ["npz", "pickle", "fortran", "shape", "channels", "many", "huge", "header", "row", "far_row", "deep"]
)
def test_cache_entry_that_was_crafted_is_built_anew(make_tree, cache, how):
    config = folder_config(make_tree(train={"a": 3, "b": 3}))
    truth, _ = load_and_listen(config)
    images, index = next(cache.glob("*/images.npy")), next(cache.glob("*/entry.json"))
    pixels_NHWC = np.load(images)
    headers = {
        "huge": "{'descr': '|u1', 'fortran_order': False, 'shape': (6, 1000000000000, 1000000000000, 3)}",
        "header": "{'descr': " + "(" * 5000 + "}",
        "many": "{'descr': '|u1', 'fortran_order': False, 'shape': (7, 16, 16, 3)}",
    }
    others = {
        "fortran": np.asfortranarray(pixels_NHWC),
        "shape": np.zeros((6, 8, 8, 3), np.uint8),
        "channels": np.zeros((6, 16, 16, 2), np.uint8),
        "pickle": np.full((6, 16, 16, 3), None),
    }
    broken = {"row": "[6]", "far_row": "[1" + "0" * 30 + "]", "deep": "[" * 100_000}
    if how == "npz":
        with images.open("wb") as file:
            np.savez(file, pixels_NHWC)
    elif how in headers:
        craft_npy(images, headers[how])
    elif how in others:
        np.save(images, others[how])
        index.write_text(json.dumps({"crc32": zlib.crc32(others[how].tobytes()), "broken": []}))
    else:
        index.write_text(f'{{"crc32": {zlib.crc32(pixels_NHWC.data)}, "broken": {broken[how]}}}')
    data, messages = load_and_listen(config)
    assert same_data(data, truth)
    assert "is damaged: decoding again" in messages[0] and messages[-1] == "decoded 6 train images"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_cache_entry_of_another_user_counts_only_where_not_everybody_may_write(make_tree, cache):
    config = folder_config(make_tree(train={"a": 3, "b": 3}))
    load_dataset(config)
    os.chown(next(path for path in cache.iterdir() if path.is_dir()), 12345, 12345)
    assert load_and_listen(config)[1] == []
    cache.chmod(0o1777)
    with pytest.raises(DataError, match=r"is another user's, in a cache folder where everybody.*FBSEARCH_CACHE"):
        load_dataset(config)


def test_cache_that_cannot_be_written_says_what_to_do(make_tree, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FBSEARCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"cannot write the cache .* \(Not a directory\).*FBSEARCH_CACHE"):
        load_dataset(folder_config(make_tree(train={"a": 3, "b": 3})))


# These need no torch, so that they start fast: `folder` and `cache` alone are what they are about.
LOAD = """
import sys, zlib
from fbsearch.data.image_cache import load_images
from fbsearch.errors import DataError
from fbsearch.data.image_tree import scan_tree
def load(root):
    say = lambda text: print(text, flush=True)
    files = scan_tree(root).train
    return load_images(files, image_size=64, channels=None, skip_broken=False, notice=say).images_NHWC
"""


def python_command(code: str) -> list[str]:
    return [sys.executable, "-W", "error", "-c", dedent(code)]


def run_python(code: str) -> str:
    return subprocess.run(python_command(code), capture_output=True, text=True, check=True, timeout=240).stdout


def test_cache_on_a_full_disk_says_what_to_do_and_leaves_nothing(make_tree, cache):
    """A limit on file sizes stands in for a full disk: writing fails at the same place."""
    tree = make_tree(train={"a": 30, "b": 30})
    output = run_python(f"""{LOAD}
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    load({str(tree)!r})
except DataError as error:
    print(error)
""")
    assert "cannot write the cache of decoded images" in output and "File too large" in output
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_cache_is_built_once_by_processes_that_start_together(make_tree):
    tree = make_tree(train={"a": 300, "b": 300}, size=(200, 200), end=".jpg")
    code = f"{LOAD}\nprint(zlib.crc32(load({str(tree)!r}).tobytes()))"
    together = [subprocess.Popen(python_command(code), stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=240)[0].splitlines() for process in together]
    assert [process.returncode for process in together] == [0, 0, 0]
    assert sum("decoded 600 train images" in lines for lines in outputs) == 1
    assert len({lines[-1] for lines in outputs}) == 1
    waiting = "another process is decoding train images: waiting for it"
    notices = [[line for line in lines[:-1] if not line.startswith("decoding ")] for lines in outputs]  # if it is slow
    assert all(lines in ([], [waiting], ["decoded 600 train images"]) for lines in notices)


@pytest.mark.slow
def test_cache_survives_a_kill_while_decoding(make_tree, cache):
    tree = make_tree(train={"a": 600, "b": 600}, size=(300, 300), end=".jpg")
    victim = subprocess.Popen(python_command(f"{LOAD}\nload({str(tree)!r})"), stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in cache.glob("*.partial/images.npy")):
        assert victim.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert list(cache.glob("*.partial")) and not list(cache.glob("*/entry.json"))
    data, messages = load_and_listen(folder_config(tree, image_size=64))
    assert messages[-1] == "decoded 1,200 train images" and data.info.num_train == 960
    assert not list(cache.glob("*.partial"))


def test_cache_entry_is_plain_json_and_npy(make_tree, cache):
    load_dataset(folder_config(make_tree(train={"a": 3, "b": 3})))
    entry = next(path for path in cache.iterdir() if path.is_dir())
    assert sorted(path.name for path in entry.iterdir()) == ["entry.json", "images.npy"]
    assert json.loads((entry / "entry.json").read_text())["broken"] == []
    assert np.load(entry / "images.npy", allow_pickle=False).shape == (6, 16, 16, 3)
