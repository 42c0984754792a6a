"""Folders of images: as torchvision prepares them, and what is refused."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import wsb_engine as wsb
from wsb_engine.sources import images
from wsb_engine.sources.images import Pixels, read_images
from wsb_engine.sources.samples import Samples

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (40, 50, 3), dtype=np.uint8)


def ignore(_phase: str, _fraction: float) -> None: ...


def put(path: Path, pixels: NDArray[Any] = NOISE, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **more)
    return path


def read(folder: Path, rows: int | None = None, classes: Any = None, **pixels: Any) -> Samples:
    return read_images(folder, Pixels(**pixels), rows=rows, classes=classes, progress=ignore)


def test_classes_are_numbered_by_the_sorted_names_of_folders(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/nested/2.PNG", "bird/1.png", "Dog/1.png", ".cache/1.png"):
        put(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "list.csv").write_text("no folder")
    samples = read(tmp_path)
    assert samples.classes == ("Dog", "bird", "cat", "empty")
    assert samples.y.tolist() == [0, 1, 2, 2]
    assert samples.x["x"].shape == (4, 3, 40, 50)


def test_a_list_of_classes_gives_their_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / name / "1.png")
    samples = read(tmp_path, classes=("b", "c", "a"))
    assert (samples.y.tolist(), samples.classes) == ([2, 0], ("b", "c", "a"))
    with pytest.raises(wsb.BatchError, match="labels_unknown"):
        read(tmp_path, classes=("b", "c"))


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ({}, (NOISE / np.float32(255)).transpose(2, 0, 1)),
        ({"layout": "nhwc"}, NOISE / np.float32(255)),
        ({"scaling": "none"}, NOISE.astype(np.float32).transpose(2, 0, 1)),
        ({"scaling": "symmetric"}, (NOISE / np.float32(127.5) - np.float32(1)).transpose(2, 0, 1)),
        (
            {"mean": (0.5, 0.25, 0.125), "std": (0.5, 2, 4), "layout": "nhwc"},
            (NOISE / np.float32(255) - np.float32([0.5, 0.25, 0.125])) / np.float32([0.5, 2, 4]),
        ),
        ({"mean": (0.5,), "std": (0.25,)}, ((NOISE / np.float32(255) - np.float32(0.5)) * 4).transpose(2, 0, 1)),
        ({"size": (40, 40)}, (NOISE[:, 5:45] / np.float32(255)).transpose(2, 0, 1)),
        ({"size": (20, 30), "short_side": 40}, (NOISE[10:30, 10:40] / np.float32(255)).transpose(2, 0, 1)),
    ],
)
def test_pixels_are_scaled_cropped_and_laid_out(
    tmp_path: Path, pixels: dict[str, Any], expected: NDArray[np.float32]
) -> None:
    put(tmp_path / "a" / "1.png")
    x = read(tmp_path, **pixels).x["x"]
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x[0], expected)


def test_the_result_is_that_of_torchvision(tmp_path: Path) -> None:
    """Resize(32), CenterCrop(28), ToTensor() and Normalize of torchvision 0.28, whose numbers are below."""
    row, column = np.mgrid[:45, :71]
    image = np.stack([(row * 5) % 256, (column * 3) % 256, (row * column) % 256], 2)
    put(tmp_path / "a" / "1.png", image.astype(np.uint8))
    pixels: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    x = read(tmp_path, size=(28, 28), short_side=32, **pixels).x["x"][0]
    expected = [-1.8610327243804932, 0.29271721839904785, 0.9667975902557373]
    means = [-0.23418103158473969, -0.19747892022132874, 0.4201565980911255]
    np.testing.assert_array_equal([x[0, 0, 0], x[1, 13, 20], x[2, 27, 27]], np.float32(expected))
    np.testing.assert_allclose(x.mean((1, 2)), means, rtol=1e-5)


def test_squashing_keeps_the_whole_image(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.png", np.repeat(np.uint8([[[0] * 3, [255] * 3]]), 10, axis=0).repeat(5, axis=1))
    x = read(tmp_path, size=(2, 2), resize="squash", interpolation="nearest", grayscale=True).x["x"]
    assert x.tolist() == [[[[0, 1], [0, 1]]]]


@pytest.mark.parametrize("suffix", [".bmp", ".jpg", ".jpeg", ".png", ".ppm", ".tif", ".tiff", ".webp"])
def test_formats_are_read(tmp_path: Path, suffix: str) -> None:
    put(tmp_path / "a" / f"1{suffix}", np.full((4, 4, 3), 128, np.uint8))
    np.testing.assert_allclose(read(tmp_path).x["x"], 128 / 255, atol=0.02)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_modes_of_8_bits_are_converted(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (3, 3), "white").convert(mode).save(tmp_path / "a" / "1.tif")
    np.testing.assert_allclose(read(tmp_path).x["x"], 1, atol=0.01)


def test_the_orientation_of_the_camera_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path / "a" / "1.jpg", exif=exif)
    assert read(tmp_path).x["x"].shape == (1, 3, 40, 50)


def test_a_subset_has_the_classes_in_proportion(tmp_path: Path) -> None:
    for name, count in (("a", 8), ("b", 4)):
        for index in range(count):
            put(tmp_path / name / f"{index}.png", np.full((2, 2, 3), index, np.uint8))
    samples = read(tmp_path, rows=6)
    assert samples.y.tolist() == [0, 0, 0, 0, 1, 1]


def bomb() -> bytes:
    """A PNG file of a few bytes that declares 60000 × 60000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def encoded(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, form)
    return buffer.getvalue()


def text_bomb() -> bytes:
    content = b"Comment\0\0" + zlib.compress(bytes(200 << 20))
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    png = encoded("PNG")
    return png[:33] + chunk + png[33:]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/wsb-was-here) (w) file\n"


def hostile() -> dict[str, bytes]:
    """Name → content; deep.png is filled by the test."""
    return {
        "empty.png": b"",
        "text.jpg": b"<html>not found</html>",
        "cut.png": encoded("PNG")[:1000],
        "cut.jpg": encoded("JPEG")[:800],
        "cut.tif": encoded("TIFF")[:200],
        "bomb.png": bomb(),
        "text_bomb.png": text_bomb(),
        "postscript.png": POSTSCRIPT,
        "gif.png": encoded("GIF"),
        "deep.png": b"",
    }


@pytest.mark.slow
def test_damaged_and_hostile_images_are_all_named(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.png")
    damaged = hostile()
    for name, content in damaged.items():
        (tmp_path / "a" / name).write_bytes(content)
    Image.fromarray(RANDOM.integers(0, 1 << 16, (4, 4)).astype(np.uint16)).save(tmp_path / "a" / "deep.png")
    for name in damaged:
        lone = tmp_path / "lone" / "a" / name
        lone.parent.mkdir(parents=True, exist_ok=True)
        lone.write_bytes((tmp_path / "a" / name).read_bytes())
        with pytest.raises(wsb.BatchError, match="images_unreadable") as caught:
            read(tmp_path / "lone", size=(8, 8))
        assert f"a/{name}" in caught.value.message
        lone.unlink()
    with pytest.raises(wsb.BatchError) as caught:
        read(tmp_path, classes=("a", "lone"), size=(8, 8))
    assert caught.value.details["images"] == sorted(caught.value.details["images"])
    assert len(caught.value.details["images"]) == len(damaged)
    assert not Path("/tmp/wsb-was-here").exists()  # noqa: S108


def test_more_damaged_images_than_fit_a_message_are_counted(tmp_path: Path) -> None:
    for index in range(30):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{index}.png").write_bytes(b"?")
    with pytest.raises(wsb.BatchError, match="perhaps more"):
        read(tmp_path, size=(8, 8))


def test_links_and_devices_are_left_alone(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "device.png").symlink_to("/dev/zero")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert len(read(tmp_path).y) == 1


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.png")
    put(tmp_path / "a" / "2.png", NOISE[:30])
    with pytest.raises(wsb.BatchError, match=r"a/2\.png has 50 × 30 pixels, a/1\.png has 50 × 40 .*--size"):
        read(tmp_path)
    assert len(read(tmp_path, size=(8, 8)).y) == 2


def test_a_strip_is_not_blown_up_by_a_crop(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.png", np.zeros((1, 60_000, 3), np.uint8))
    with pytest.raises(wsb.BatchError, match="too narrow"):
        read(tmp_path, size=(224, 224))


def test_too_many_images_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(5):
        put(tmp_path / "a" / f"{index}.png")
    monkeypatch.setattr("wsb_engine.sources.samples.MAX_BYTES", 4 * 3 * 64 * 3)
    with pytest.raises(wsb.BatchError, match=r"batch_too_large.*--rows 3\."):
        read(tmp_path, size=(8, 8))


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda folder: folder / "none", "source_not_found"),
        (lambda folder: put(folder / "x.png"), "source_not_found"),
        (lambda folder: put(folder / "x.png").parent, "no_class_folders"),
        (lambda folder: (folder / "a").mkdir() or folder, "no_images"),
    ],
)
def test_a_folder_without_images_has_its_code(tmp_path: Path, make: Any, code: str) -> None:
    with pytest.raises(wsb.BatchError) as caught:
        read(make(tmp_path))
    assert caught.value.code == code


@pytest.mark.parametrize(
    "settings",
    [
        {"mean": (0.5, 0.5)},
        {"mean": (0.5,) * 3, "grayscale": True},
        {"std": (0.5, 0.0, 0.5)},
        {"std": (float("nan"),)},
        {"size": (0, 4)},
        {"size": (4, 1 << 15)},
        {"short_side": 4},
        {"size": (8, 8), "short_side": 4},
        {"size": (8, 8), "short_side": 9, "resize": "squash"},
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(wsb.BatchError, match="image_settings_invalid"):
        Pixels(**settings)


def test_without_pillow_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(wsb.BatchError) as caught:
        read(tmp_path)
    assert (caught.value.code, caught.value.advice) == ("pillow_missing", "pip install 'wsb-sharpness[images]'")


def test_an_interrupt_ends_the_threads(tmp_path: Path) -> None:
    for index in range(50):
        put(tmp_path / "a" / f"{index:02}.png")

    def stop(_phase: str, fraction: float) -> None:
        if fraction > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_images(tmp_path, Pixels(), progress=stop)


def test_the_reader_loads_no_torch() -> None:
    program = "import sys\nimport wsb_engine.sources.images\nprint('torch' in sys.modules, 'PIL' in sys.modules)"
    run = [sys.executable, "-c", program]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "False False\n"


def test_the_limit_of_pixels_is_below_that_of_pillow() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert images.MAX_PIXELS < Image.MAX_IMAGE_PIXELS
