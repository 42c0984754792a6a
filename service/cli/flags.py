"""The engine's options as command-line flags, made from their schema so that names and help can't differ."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import ValidationError

from service.fields import field_errors
from wsb_engine.options import Options


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces the parameter ``options`` of a typer command by one flag for each field of ``Options``."""
    own = inspect.signature(command, eval_str=True).parameters
    parameters = [parameter for name, parameter in own.items() if name != "options"]
    parameters += [_flag(name) for name in Options.model_fields]

    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in Options.model_fields}
        command(**values, options=_options({name: value for name, value in given.items() if value is not None}))

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options(given: dict[str, Any]) -> Options:
    try:
        return Options.model_validate(given)
    except ValidationError as error:
        found = "; ".join(f"--{_kebab(item.pointer)}: {item.detail}" for item in field_errors(error))
        raise typer.BadParameter(found) from error


def _flag(name: str) -> inspect.Parameter:
    field = Options.model_fields[name]
    kind, default = field.annotation, field.default
    if get_origin(kind) is tuple:
        kind, default = list[str], list(default)
    elif type(None) in get_args(kind):
        kind = next(part for part in get_args(kind) if part is not type(None)) | None
    names = [f"--{_kebab(name)}"]
    if kind is bool:
        names = [f"{names[0]}/--no-{_kebab(name)}"]
    option = typer.Option(*names, help=field.description)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _kebab(name: str) -> str:
    return name.strip("/").split("/")[0].replace("_", "-")
