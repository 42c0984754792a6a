"""A PyTorch 2 archive as a Classifier."""

from __future__ import annotations

from pathlib import Path

from wsb_engine.errors import ModelError
from wsb_engine.formats.pt2 import problems
from wsb_engine.formats.pt2.archive import Archive, open_archive
from wsb_engine.formats.pt2.fields import document
from wsb_engine.formats.pt2.translation import translate
from wsb_engine.formats.pt2.weights import Stored, require_apart
from wsb_engine.formats.torchscript.classifier import ScriptClassifier
from wsb_engine.formats.torchscript.loading import Script, assembled


class Pt2Classifier(ScriptClassifier):
    """A classifier read from what ``torch.export.save`` writes; nothing in it has been executed or unpickled.

    Args:
        source: Path of the file, whose weights are mapped, or its bytes.

    Raises:
        ModelError: with a code for everything that can be wrong with the file; see ``archive``, ``weights``,
            ``translation``, and the interpreter of TorchScript.
        OSError: if the file can't be read.
    """

    format = "pt2"

    def __init__(self, source: bytes | Path) -> None:
        archive = open_archive(source)
        super().__init__(_script(archive), archive.sha256)


def _script(archive: Archive) -> Script:
    name = _program_name(archive)
    stored = Stored(archive, name)
    program = translate(document(archive, f"models/{name}.json"), stored.tensors)
    script = assembled(
        program.block,
        program.arguments,
        stored,
        [(parameter, stored.tensors[parameter]) for parameter in program.parameters],
    )
    require_apart(script.parameters)
    return script


def _program_name(archive: Archive) -> str:
    """Return the name of the only program.

    Raises:
        ModelError: ``pt2_several_programs``, ``pt2_refused`` for compiled code alone, ``model_invalid``.
    """
    if archive.members.keys() >= {"byteorder"} and archive.read("byteorder", 16).strip() != b"little":
        raise problems.invalid("the archive was written on a machine that stores numbers in another order")
    names = [
        member.removeprefix("models/").removesuffix(".json")
        for member in archive.members
        if member.startswith("models/") and member.endswith(".json")
    ]
    if len(names) > 1:
        raise problems.several(names)
    if names:
        return names[0]
    raise ModelError(
        "the archive holds no exported program",
        code="model_invalid",
        advice=problems.SAVE_AGAIN,
    )
