"""The command `wsb`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import wsb_engine
from service.cli.batch import batch
from service.cli.ending import Exit
from service.cli.ending import end as _end
from service.cli.flags import with_options, with_outputs
from service.cli.needs import needs_the_server, read_settings
from service.cli.operations import backup, doctor, restore
from service.cli.plot import plot
from service.cli.processes import serve, worker
from service.cli.verify import verify
from wsb_engine.options import Options

# What the help doesn't need is imported where it is used; otherwise it would take half of its time.
if TYPE_CHECKING:
    from service.cli.outputs import Outputs
    from service.policies import Policy, Verdict
    from service.settings import Settings
    from wsb_engine.report import Report

# Without rich's markup, whose import takes longer than all other imports of the help.
app = typer.Typer(
    help="Certified sharpness of trained classifiers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

keys = typer.Typer(help="API keys of the service.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(keys, name="keys")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(wsb_engine.__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Certified sharpness of trained classifiers: bounds on the largest eigenvalue of the cross-entropy Hessian."""


app.command()(serve)
app.command()(worker)

ModelFile = Annotated[
    Path,
    typer.Argument(exists=True, readable=True, help="ONNX file, PyTorch 2 archive (.pt2) or TorchScript archive."),
]
BatchFile = Annotated[Path, typer.Argument(exists=True, readable=True, help=".npz or .safetensors.")]
Server = Annotated[str | None, typer.Option(help="URL of a server to analyse on instead of this machine.")]
PromoteOn = Literal["pass", "warn"]
Name = Annotated[str | None, typer.Option(help="What to call the analysis on the server.")]
Label = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME:VALUE",
        help="Label of the analysis on the server; repeatable. In a CI run, commit, branch and run are set otherwise.",
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also print the theorems that the numbers rest on.")]
StateFile = Annotated[
    Path | None,
    typer.Option(
        "--optimizer-state",
        exists=True,
        readable=True,
        dir_okay=False,
        help="Second moments of the optimizer that --optimizer names, .safetensors.",
    ),
]
Seconds = Annotated[float | None, typer.Option(min=0.001, help="Wall-clock limit in seconds.")]


@app.command()
@with_options
@with_outputs(of_verdicts=False)
def analyze(
    model: ModelFile,
    batch: BatchFile,
    url: Server = None,
    name: Name = None,
    label: Label = None,
    timeout: Seconds = None,
    compare_with: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:ATTRIBUTE",
            help="Live module, or a function that returns one, to compare the file's parameters with. Its Python code"
            " runs here.",
        ),
    ] = None,
    optimizer_state: StateFile = None,
    verbose: Verbose = False,
    *,
    outputs: dict[str, Path],
    options: Options,
) -> None:
    """Analyse a model on a batch and print the bounds.

    Exit codes: 0 done, 2 invalid input, 3 not evaluated, or a check of the report failed.
    """
    from service.cli.outputs import Outputs
    from service.cli.running import about, evaluated
    from service.cli.summary import summarize
    from service.rendering import wording
    from wsb_engine.presentation.headline import Yardstick

    wanted = Outputs(outputs)
    _check(wanted)
    if options.stop == "decided":
        _end("--stop decided needs a policy: use wsb check, or leave it out. [policy_missing]", Exit.INVALID)
    if compare_with is not None:
        typer.echo(_compared(model, compare_with, url), err=wanted.uses_stdout)
    told = about(name, label or [], url)
    report = evaluated(
        *(model, batch, options),
        settings=read_settings(),
        url=url,
        timeout=timeout,
        told=told,
        optimizer_state=optimizer_state,
    ).report
    yardstick = Yardstick(options.learning_rate)
    if not wanted.uses_stdout:
        typer.echo(summarize(report, yardstick, verbose=verbose))
    with _ending_if_unwritable():
        wanted.write(report, yardstick=yardstick)
    if doubts := wording.doubts(report):
        _end("\n".join([f"{wording.UNRELIABLE} [check_failed]", *doubts]), Exit.NOT_EVALUATED)


@app.command()
@with_options
@with_outputs(of_verdicts=True)
def check(
    model: ModelFile,
    batch: BatchFile,
    policy: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="File with the rules, TOML or JSON.")],
    baseline: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Report to compare with, written by --json.")
    ] = None,
    baseline_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Baseline of the server to compare with, if it exists yet.")
    ] = None,
    promote_on: Annotated[
        PromoteOn | None,
        typer.Option(help="Make this analysis the baseline --baseline-name if it passes, or if it passes or warns."),
    ] = None,
    url: Server = None,
    name: Name = None,
    label: Label = None,
    timeout: Seconds = None,
    optimizer_state: StateFile = None,
    verbose: Verbose = False,
    *,
    outputs: dict[str, Path],
    options: Options,
) -> None:
    """Analyse a model on a batch and apply a policy to the report.

    Exit codes: 0 passed, 1 a rule failed, 2 invalid input, policy or baseline, 3 not evaluated.
    """
    from service.cli.outputs import Outputs, describe
    from service.cli.running import about, evaluated, promote
    from service.cli.summary import summarize
    from service.policies import evaluate
    from service.rendering.yardstick import yardstick_of

    wanted, settings = Outputs(outputs), read_settings()
    _check(wanted)
    _check_baseline(baseline, baseline_name, promote_on, url, options)
    rules, base = _rules(policy, baseline, baseline_name, url, settings)
    run = evaluated(
        *(model, batch, options),
        settings=settings,
        url=url,
        timeout=timeout,
        told=about(name, label or [], url),
        policy=rules,
        baseline=base,
        optimizer_state=optimizer_state,
    )
    found = evaluate(rules, run.report, base, options.learning_rate)
    yardstick = yardstick_of(rules.rate(options.learning_rate), base, found)
    summary = summarize(run.report, yardstick, verbose=verbose)
    typer.echo(f"{summary}\n\n{describe(found)}", err=wanted.uses_stdout)
    with _ending_if_unwritable():
        wanted.write(run.report, found, base, yardstick)
    if promote_on is not None and found.outcome in ("pass", promote_on) and run.analysis and baseline_name and url:
        typer.echo(promote(baseline_name, run.analysis, url, settings=settings), err=True)
    raise typer.Exit(_exit_of(found))


def _check_baseline(
    baseline: Path | None, name: str | None, promote_on: str | None, url: str | None, options: Options
) -> None:
    """End the command if its flags about the baseline do not go together."""
    if name is not None and url is None:
        _end("--baseline-name is a baseline of a server: give its --url.", Exit.INVALID)
    if name is not None and baseline is not None:
        _end("Give either --baseline or --baseline-name.", Exit.INVALID)
    if promote_on is not None and name is None:
        _end("--promote-on needs a --baseline-name to promote to.", Exit.INVALID)
    if promote_on is not None and options.stop == "decided":
        text = "An analysis that stops when it is decided can't be a baseline: leave out --stop or --promote-on."
        _end(f"{text} [baseline_decided]", Exit.INVALID)


def _rules(
    policy: Path, baseline: Path | None, baseline_name: str | None, url: str | None, settings: Settings
) -> tuple[Policy, Report | None]:
    """Read the policy and the report that it compares with, if there is one; end the command if that fails."""
    from service.cli.outputs import UnusableError, read_baseline, read_policy
    from service.cli.running import named_baseline

    try:
        base = None
        if baseline_name is not None and url is not None:
            read_policy(policy, with_baseline=True)  # before the server is asked
            base = named_baseline(baseline_name, url, settings=settings)
        rules = read_policy(policy, with_baseline=baseline is not None or base is not None)
        if baseline is not None:
            base = read_baseline(baseline, rules)
    except UnusableError as error:
        _end(str(error), Exit.INVALID)
    return rules, base


@app.command()
@with_options
def estimate(
    model: ModelFile,
    batch: BatchFile,
    timeout: Seconds = None,
    json: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the estimate here; - for stdout.")] = None,
    *,
    options: Options,
) -> None:
    """Say what an analysis will cost: operations, memory and seconds by phase. Only a few samples are run.

    Exit codes: 0 done, 2 invalid input, 3 not estimated.
    """
    from service.cli.estimate import described
    from service.cli.outputs import Outputs, write_text
    from service.cli.running import estimated

    wanted = Outputs({} if json is None else {"json": json})
    _check(wanted)
    found = estimated(model, batch, options, settings=read_settings(), timeout=timeout)
    if not wanted.uses_stdout:
        typer.echo(described(found))
    if json is not None:
        with _ending_if_unwritable():
            write_text(json, found.model_dump_json(indent=2) + "\n")


for command in (verify, batch, plot, backup, restore, doctor):
    app.command()(command)


def _compared(model: Path, place: str, url: str | None) -> str:
    """Compare the parameters of a file with those of a live module."""
    from service.cli.live import UnusableModuleError, live_module

    if url is not None:
        _end("--compare-with runs the module's code on this machine; leave out --url.", Exit.INVALID)
    try:
        return str(wsb_engine.compare_parameters(wsb_engine.load_model(model), live_module(place)))
    except (UnusableModuleError, wsb_engine.EngineError) as error:
        _end(str(error), Exit.INVALID)


def _check(outputs: Outputs) -> None:
    from service.cli.outputs import UnusableError

    try:
        outputs.check()
    except UnusableError as error:
        _end(str(error), Exit.INVALID)


@contextmanager
def _ending_if_unwritable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _end(f"{error.filename} can't be written: {error.strerror}", Exit.INVALID)


def _exit_of(verdict: Verdict) -> Exit:
    if verdict.outcome == "error":
        return Exit.INVALID if verdict.code in ("baseline_mismatch", "baseline_decided") else Exit.NOT_EVALUATED
    return Exit.FAILED if verdict.outcome == "fail" else Exit.DONE


@keys.command("new")
def new_key(
    name: Annotated[str, typer.Argument(help="Tenant of the key; data sent with the key belongs to the tenant.")],
    scopes: Annotated[
        str,
        typer.Option(help="What the key allows: submit, read and admin, joined by +; without it, all of them."),
    ] = "",
    expires: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last day (UTC) of the key, such as 2027-01-31.")
    ] = None,
) -> None:
    """Create an API key: print the key, which is not stored, and the server's entry for it."""
    from service.keys import ApiKey, entry, hash_key, is_tenant_name, new_key, parse_scopes

    if not is_tenant_name(name):
        raise typer.BadParameter("at most 64 letters, digits, '_', '.' and '-'", param_hint="NAME")
    try:
        allowed = parse_scopes(scopes)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--scopes") from error
    key = new_key()
    known = ApiKey(name, hash_key(key), allowed, None if expires is None else expires.date())
    typer.echo(f"WSB_API_KEY={key}\nWSB_API_KEYS={entry(known)}")
    typer.echo(
        "The first line is for the client and is not shown again. The second is for the server; separate several"
        " entries with commas.",
        err=True,
    )


@app.command()
def openapi() -> None:
    """Print the OpenAPI specification."""
    with needs_the_server():
        from service.http.openapi import render
        from service.server.app import create_app

    typer.echo(render(create_app(read_settings())), nl=False)


if __name__ == "__main__":
    app()
