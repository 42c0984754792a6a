"""Flags generated from engine options and outputs, so that names and help can't differ."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import ValidationError

from service.fields import field_errors, is_list, is_object
from service.rendering.registry import RENDERINGS
from wsb_engine.options import Options


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter ``options`` of a typer command with one flag for each field of ``Options``."""
    flags = [_flag(name) for name in Options.model_fields]
    return _with_flags(command, "options", flags, _options)


def with_outputs(*, of_verdicts: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameter ``outputs`` of a typer command with one flag for each output, as a dictionary of paths.

    Args:
        of_verdicts: True to include outputs that need a verdict.
    """
    offered = {"json": "Write the report here; - for stdout."}
    if of_verdicts:
        offered["verdict"] = "Write the verdict as JSON."
        offered["comment"] = "Write Markdown for a pull request: λ_max before and after."
    offered |= {each.name: each.help for each in RENDERINGS if of_verdicts or not each.of_verdicts}
    flags = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[Path | None, typer.Option(f"--{name}", dir_okay=False, help=text)],
        )
        for name, text in offered.items()
    ]
    return lambda command: _with_flags(command, "outputs", flags, lambda given: given)


def _with_flags(
    command: Callable[..., None],
    replaced: str,
    flags: list[inspect.Parameter],
    value_of: Callable[[dict[str, Any]], Any],
) -> Callable[..., None]:
    """Return a command with flags in place of a parameter, whose value is made from the flags given."""
    own = inspect.signature(command, eval_str=True).parameters
    parameters = [parameter for name, parameter in own.items() if name != replaced] + flags

    def run(**values: Any) -> None:
        given = {flag.name: values.pop(flag.name) for flag in flags}
        command(**values, **{replaced: value_of({name: value for name, value in given.items() if value is not None})})

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options(given: dict[str, Any]) -> Options:
    # A list that no flag filled is the option's default.
    given = {name: value for name, value in given.items() if value != []}
    try:
        return Options.model_validate(given)
    except ValidationError as error:
        found = "; ".join(f"--{_kebab(item.pointer)}: {item.detail}" for item in field_errors(error))
        raise typer.BadParameter(found) from error


def _flag(name: str) -> inspect.Parameter:
    field = Options.model_fields[name]
    kind, default = field.annotation, field.default
    if is_list(kind):
        kind, default = list[str], list(default or ())
    elif type(None) in get_args(kind):
        inner = next(part for part in get_args(kind) if part is not type(None))
        # An option of several settings is JSON.
        kind = str | None if is_object(inner) else inner | None
    names = [f"--{_kebab(name)}"]
    if kind is bool:
        names = [f"{names[0]}/--no-{_kebab(name)}"]
    option = typer.Option(*names, help=field.description)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _kebab(name: str) -> str:
    return name.strip("/").split("/")[0].replace("_", "-")
