"""The command `wsb batch`: makes a batch file from what people have."""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service.cli.ending import Exit, end

# The help needs none of the engine.
if TYPE_CHECKING:
    from wsb_engine.batch import Batch
    from wsb_engine.sources.samples import ProgressSink, Samples

_CLASSES_SHOWN = 50
_SOURCES = ("csv", "images", "npy", "npz", "dataset")
_PIXELS = ("size", "resize", "short_side", "interpolation", "grayscale", "scaling", "mean", "std", "layout")
_BELONGS = {
    **dict.fromkeys(("label", "drop", "delimiter"), ("csv",)),
    **dict.fromkeys(("x", "y"), ("npz", "dataset")),
    "split": ("dataset",),
    "keep_labels": ("csv", "npy", "npz", "dataset"),
    **dict.fromkeys(_PIXELS, ("images", "dataset")),
    "scaling": ("images", "dataset", "npy", "npz"),
}
"""Flags that only some sources have."""


def batch(
    out: Annotated[Path, typer.Argument(dir_okay=False, help="File to write: .npz or .safetensors.")],
    csv: Annotated[Path | None, typer.Option(help="CSV file with a header line.", metavar="FILE")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder with a folder of images for each class.")] = None,
    npy: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two .npy files: inputs and labels.", metavar="X Y")
    ] = None,
    npz: Annotated[Path | None, typer.Option(help=".npz archive with arrays of any names.", metavar="FILE")] = None,
    dataset: Annotated[Path | None, typer.Option(help="Folder that a Hugging Face dataset was saved to.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of a random subset with the classes in proportion.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the subset.")] = 0,
    classes: Annotated[
        str | None, typer.Option(help="Names of all classes in logit order: a,b,c.", show_default="sorted")
    ] = None,
    keep_labels: Annotated[
        bool, typer.Option("--keep-labels", help="Keep text labels, for a model that declares its classes.")
    ] = False,
    dtype: Annotated[
        Literal["float32", "float64", "int64"], typer.Option(help="Dtype of inputs that are not integers.")
    ] = "float32",
    input_name: Annotated[
        list[str] | None, typer.Option(help="Name of the input in the file; repeat for several.", show_default="x")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    label: Annotated[str | None, typer.Option(help="CSV: column with the classes.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="CSV: column to leave out; repeat for several.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="CSV: character between fields.", show_default=",")] = None,
    x: Annotated[
        list[str] | None, typer.Option("--x", help="npz, dataset: inputs; repeat for several.", show_default="x")
    ] = None,
    y: Annotated[str | None, typer.Option("--y", help="npz, dataset: labels.", show_default="y")] = None,
    split: Annotated[str | None, typer.Option(help="dataset: split to read.")] = None,
    size: Annotated[
        str | None, typer.Option(help="Images: side, or HEIGHTxWIDTH.", show_default="that of the images")
    ] = None,
    resize: Annotated[
        Literal["crop", "squash"] | None,
        typer.Option(help="Images: scale the shorter side and crop, or scale both sides.", show_default="crop"),
    ] = None,
    short_side: Annotated[
        int | None, typer.Option(min=1, help="Images: shorter side before the crop.", show_default="that of the size")
    ] = None,
    interpolation: Annotated[
        Literal["nearest", "bilinear", "bicubic", "lanczos"] | None,
        typer.Option(help="Images: how they are resized.", show_default="bilinear"),
    ] = None,
    grayscale: Annotated[bool, typer.Option("--grayscale", help="Images: one channel in place of three.")] = False,
    scaling: Annotated[
        Literal["unit", "symmetric", "none"] | None,
        typer.Option(help="Bytes to 0…1, to −1…1, or as they are.", show_default="unit for images"),
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Images: subtracted after scaling, one number or one a channel: a,b,c.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Images: divides after that, as the mean.")] = None,
    layout: Annotated[
        Literal["nchw", "nhwc"] | None, typer.Option(help="Images: order of the axes.", show_default="nchw")
    ] = None,
) -> None:
    """Make a batch file from a CSV file, images, arrays or a Hugging Face dataset.

    Prints what the file holds, with the number of rows of each class, to stderr. Exit codes: 0 done, 2 invalid input.
    """
    given = {name: value for name, value in locals().items() if value is not None and value is not False}
    _check(out, given, force=force)
    from service.cli.progress import shown_progress
    from wsb_engine.batch import Batch
    from wsb_engine.errors import EngineError
    from wsb_engine.sources.samples import named, with_dtype
    from wsb_engine.sources.write import require_suffix

    try:
        require_suffix(out)
        with shown_progress() as show:
            samples = _read(given, lambda phase, fraction: show({"phase": phase, "fraction": fraction}))
            samples = with_dtype(samples, dtype)
            if input_name:
                samples = named(samples, tuple(input_name))
            made = Batch(samples.x, samples.y)
            made.save(out)
    except EngineError as error:
        end(f"{error.message} [{error.code}]\n{error.advice}", Exit.INVALID)
    except OSError as error:
        end(f"{error.filename or out} can't be used: {error.strerror or error}", Exit.INVALID)
    except MemoryError:
        end("There is not enough memory for the batch: take fewer rows with --rows.", Exit.NOT_EVALUATED)
    except KeyboardInterrupt:
        end("Interrupted.", Exit.INTERRUPTED)
    sys.stderr.write(_summary(out, made, samples))


def _check(out: Path, given: Mapping[str, Any], *, force: bool) -> None:
    """End the command unless there is one source, its flags fit, and the file can be written."""
    sources = [name for name in _SOURCES if name in given]
    if len(sources) != 1:
        end(f"Name one source: {', '.join(f'--{name}' for name in _SOURCES)}.", Exit.INVALID)
    for flag, belongs in _BELONGS.items():
        if flag in given and sources[0] not in belongs:
            which = " or ".join(f"--{name}" for name in belongs)
            end(f"--{flag.replace('_', '-')} goes with {which}, not with --{sources[0]}.", Exit.INVALID)
    if sources == ["csv"] and "label" not in given:
        end("Name the column with the classes: --label COLUMN.", Exit.INVALID)
    if "keep_labels" in given and "classes" in given:
        end("--keep-labels and --classes exclude each other.", Exit.INVALID)
    if out.exists() and not force:
        end(f"{out} exists: choose another name, or replace it with --force.", Exit.INVALID)
    if not os.access(out.parent, os.W_OK):
        end(f"{out} can't be written: {out.parent} is no folder that you may write to.", Exit.INVALID)


def _read(given: Mapping[str, Any], progress: ProgressSink) -> Samples:
    """Read the source that the flags name."""
    subset: dict[str, Any] = {"rows": given.get("rows"), "seed": given["seed"], "progress": progress}
    classes = _names(given["classes"]) if "classes" in given else None
    if "images" in given:
        from wsb_engine.sources.images import read_images

        return read_images(given["images"], _pixels(given), classes=classes, **subset)
    subset |= {"classes": classes, "keep_labels": "keep_labels" in given}
    if "csv" in given:
        from wsb_engine.sources.table import read_csv

        delimiter = given.get("delimiter", ",").replace("\\t", "\t")
        return read_csv(given["csv"], label=given["label"], drop=given.get("drop", ()), delimiter=delimiter, **subset)
    columns: dict[str, Any] = {"x": given.get("x", ["x"]), "y": given.get("y", "y")}
    if "dataset" in given:
        from wsb_engine.sources.huggingface import read_dataset

        return read_dataset(given["dataset"], split=given.get("split"), pixels=_pixels(given), **columns, **subset)
    from wsb_engine.sources.arrays import read_npy, read_npz
    from wsb_engine.sources.samples import with_scaling

    samples = read_npy(*given["npy"], **subset) if "npy" in given else read_npz(given["npz"], **columns, **subset)
    return with_scaling(samples, given["scaling"]) if "scaling" in given else samples


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in next(csv.reader([text], skipinitialspace=True)))


def _pixels(given: Mapping[str, Any]) -> Any:
    """Return how images become arrays, from the flags."""
    from wsb_engine.sources.images import Pixels

    settings = {name: given[name] for name in _PIXELS if name in given}
    numbers: dict[str, Callable[[str], Any]] = {"size": _size, "mean": _numbers, "std": _numbers}
    for name, parse in numbers.items():
        if name in settings:
            try:
                settings[name] = parse(settings[name])
            except ValueError:
                end(f"--{name} {settings[name]} can't be understood: see wsb batch --help.", Exit.INVALID)
    return Pixels(**settings)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    return int(height), int(width or height)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _summary(out: Path, made: Batch, samples: Samples) -> str:
    """Describe a batch: its arrays, its classes and their counts."""
    rows = [(str(out), f"{_rows(len(made))}, {out.stat().st_size:,} bytes")]
    for name, tensor in made.x.items():
        rows.append((name, f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"))
    rows += list(samples.notes)
    if made.y.ndim == 1 and made.y.dtype.kind in "iU":
        counts = Counter(made.y.tolist())
        names = dict(enumerate(samples.classes or ()))
        every = sorted({*counts, *names})
        for each in every[:_CLASSES_SHOWN]:
            name = f"{names[each]}, " if each in names else ""
            rows.append((f"class {each}", f"{name}{_rows(counts[each])}"))
        if len(every) > _CLASSES_SHOWN:
            rows.append(("", f"and {len(every) - _CLASSES_SHOWN} more classes"))
    width = max(10, *(len(name) + 2 for name, _ in rows))
    return "".join(f"{name:<{width}}{text}\n" for name, text in rows)
