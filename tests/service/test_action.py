"""The recipes for CI: the Action's steps as a runner would run them, and the files beside it."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.command import wsb_here
from support.forms import full
from support.service import npz_batch, onnx_mlp

from service.policies import load_policy
from wsb_engine.report import Report

ROOT = Path(__file__).parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
HERE = Path(sys.executable).parent

MERGE, HEAD = "a" * 40, "b" * 40
RULE = '[[rule]]\nmetric = "enclosure.lambda_max"\nop = "<="\nlimit = {}\n'


def run_action(directory: Path, *, path: str | None = None, **inputs: str) -> tuple[int, dict[str, str], str]:
    """Runs the steps with these inputs; exit code, outputs, and the step summary."""
    given = {name: inputs.get(name, str(entry.get("default", ""))) for name, entry in ACTION["inputs"].items()}
    outputs, summary = directory / "outputs", directory / "summary.md"
    code = 0
    for step in ACTION["runs"]["steps"]:
        variables = {
            name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: given[found[1]], value)
            for name, value in step["env"].items()
        }
        environment = {
            **os.environ,
            "PATH": path or f"{HERE}{os.pathsep}{os.environ['PATH']}",
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_OUTPUT": str(outputs),
            "GITHUB_STEP_SUMMARY": str(summary),
            **variables,
        }
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        code = subprocess.run(command, cwd=directory, env=environment, timeout=180, check=False).returncode
    written = dict(line.split("=", 1) for line in outputs.read_text().splitlines()) if outputs.exists() else {}
    return code, written, summary.read_text() if summary.exists() else ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(onnx_mlp())
    (tmp_path / "batch.npz").write_bytes(npz_batch())
    return tmp_path


@pytest.mark.parametrize(("limit", "code", "outcome"), [(1e6, 0, "passed"), full(-1e6, 1, "failed")])
def test_a_model_passes_or_fails_with_its_results_beside_it(
    folder: Path, limit: float, code: int, outcome: str
) -> None:
    (folder / "policy.toml").write_text(RULE.format(limit))
    inputs = {"model": "model.onnx", "batch": "batch.npz", "policy": "policy.toml", "options": "--seed 3\n--top 2"}
    found, outputs, summary = run_action(folder, baseline="not-there-yet.json", **inputs)
    assert (found, outputs["outcome"], outputs["exit-code"]) == (code, outcome, str(code))
    assert Report.model_validate_json((folder / outputs["report"]).read_text()).engine.seed == 3
    assert all((folder / outputs[name]).stat().st_size for name in ("verdict", "junit", "page"))
    assert "enclosure.lambda_max" in summary


@pytest.mark.slow
def test_an_invalid_policy_leaves_no_results_of_an_earlier_run(folder: Path) -> None:
    (folder / "policy.toml").write_text("[[rule]]")
    (folder / "results").mkdir()
    (folder / "results" / "report.json").write_text("{}")
    inputs = {"model": "model.onnx", "batch": "batch.npz", "policy": "policy.toml", "folder": "results"}
    code, outputs, summary = run_action(folder, **inputs)
    assert (code, outputs["outcome"], summary) == (2, "invalid", "")
    assert list((folder / "results").iterdir()) == []


@pytest.mark.slow
def test_inputs_are_not_run(folder: Path) -> None:
    hostile = '$(touch ran); `touch ran` "; touch ran; #'
    inputs = {name: hostile for name in ACTION["inputs"] if name != "folder"}
    code, _, _ = run_action(folder, **inputs)
    assert code == 2
    assert not (folder / "ran").exists()


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


GH = """#!/usr/bin/env bash
# Stands in for the GitHub CLI: comments are files, and so are check runs.
given="$*"
printf '%s\\n' "$given" >>asked
case "$given" in
  *check-runs*) [ "$GH_TOKEN" = "no checks" ] && exit 1 ;;
esac
[ "$GH_TOKEN" = refused ] && exit 1
case "$given" in
  *--jq*)
    marker=$(sed -n 's/.*startswith("\\(.*\\)")) | .id$/\\1/p' <<<"$given")
    grep -l -- "^$marker$" comments/* | xargs -r -n 1 basename ;;
  *"--method PATCH repos/me/it/issues/comments/"*)
    number=${given#*issues/comments/}
    cp "${given##*body=@}" "comments/${number%% *}" ;;
  *"--method POST repos/me/it/issues/12/comments"*)
    cp "${given##*body=@}" "comments/$(($(ls comments | wc -l) + 1))" ;;
  "api --silent --method POST repos/me/it/check-runs --input -")
    cat >"checks/$(($(ls checks | wc -l) + 1))" ;;
  *) exit 2 ;;
esac
"""
CHECK = """#!/usr/bin/env bash
# Stands in for wsb: writes the verdict and the comment, and says what it knows of the token.
echo "token: ${GH_TOKEN-none}" >>tokens
while [ $# -gt 0 ] && [ -n "$WSB_TEST_OUTCOME" ]; do
  [ "$1" = --comment ] && echo "$WSB_TEST_COMMENT" >"$2"
  [ "$1" = --verdict ] && echo "{\\"outcome\\": \\"$WSB_TEST_OUTCOME\\"}" >"$2"
  shift
done
exit "$WSB_TEST_CODE"
"""


@pytest.fixture
def pull_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which steps of a pull request run, with stand-ins of wsb and of the GitHub CLI."""
    for name in ("comments", "checks", "tools"):
        (folder / name).mkdir()
    executable(folder / "tools" / "gh", GH)
    executable(folder / "tools" / "wsb", CHECK)
    monkeypatch.setenv("GITHUB_REF", "refs/pull/12/merge")
    monkeypatch.setenv("GITHUB_REPOSITORY", "me/it")
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.example")
    monkeypatch.setenv("GITHUB_RUN_ID", "77")
    monkeypatch.setenv("GITHUB_SHA", MERGE)
    (folder / "event.json").write_text(json.dumps({"head": "no", "pull_request": {"head": {"sha": HEAD}}}))
    monkeypatch.setenv("GITHUB_EVENT_PATH", str(folder / "event.json"))
    return folder


def step(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, *, outcome: str = "fail", code: int = 1, **inputs: str
) -> int:
    """Runs the action where the check comes to this verdict and writes this comment; its exit code."""
    monkeypatch.setenv("WSB_TEST_COMMENT", text)
    monkeypatch.setenv("WSB_TEST_OUTCOME", outcome)
    monkeypatch.setenv("WSB_TEST_CODE", str(code))
    given = {"model": "model.onnx", "batch": "b", "policy": "p", "github-token": "secret", **inputs}
    code, _, _ = run_action(folder, path=f"{folder / 'tools'}{os.pathsep}{os.environ['PATH']}", **given)
    return code


def comments(folder: Path) -> list[str]:
    return [path.read_text().partition("\n")[2].strip() for path in sorted((folder / "comments").iterdir())]


def checks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "checks").iterdir())]


def test_a_comment_is_added_once_and_then_updated(pull_request: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pull_request / "comments" / "1").write_text("\nlooks good")
    assert step(pull_request, "first", monkeypatch) == 1
    assert step(pull_request, "of another", monkeypatch, model="other.onnx") == 1
    assert step(pull_request, "second", monkeypatch) == 1
    assert comments(pull_request) == ["looks good", "second", "of another"]
    asked = (pull_request / "asked").read_text()
    assert (asked.count("--method POST repos/me/it/issues"), asked.count("--method PATCH")) == (2, 1)
    assert "secret" not in asked
    assert set((pull_request / "tokens").read_text().splitlines()) == {"token: none"}


@pytest.mark.parametrize(
    ("inputs", "ref"),
    [
        ({"github-token": ""}, "refs/pull/12/merge"),
        ({}, "refs/heads/main"),
        ({"github-token": "refused"}, "refs/pull/1/head"),
    ],
)
def test_without_a_token_that_may_comment_the_check_still_decides(
    pull_request: Path, monkeypatch: pytest.MonkeyPatch, inputs: dict[str, str], ref: str
) -> None:
    monkeypatch.setenv("GITHUB_REF", ref)
    assert step(pull_request, "text", monkeypatch, **inputs) == 1
    assert comments(pull_request) == []
    asked = (pull_request / "asked").read_text() if (pull_request / "asked").exists() else ""
    assert ("/issues/" in asked) == (inputs == {"github-token": "refused"})
    assert bool(asked) == (inputs != {"github-token": ""})


COMMENT = "### {} Sharpness: {}\n\n| λ_max | 1.0 ± 1e-9 | 1.5 ± 1e-9 | sharper, certainly |"


@pytest.mark.parametrize(
    ("outcome", "code", "conclusion", "title"),
    [
        ("pass", 0, "success", "✓ Sharpness: passed"),
        full("warn", 0, "neutral", "! Sharpness: passed with warnings"),
        ("fail", 1, "failure", "✗ Sharpness: failed"),
        full("error", 3, "failure", "? Sharpness: not decided"),
    ],
)
def test_the_commit_that_was_pushed_gets_a_check_run_with_both_intervals(
    pull_request: Path, monkeypatch: pytest.MonkeyPatch, outcome: str, code: int, conclusion: str, title: str
) -> None:
    text = COMMENT.format(*title.split(" Sharpness: "))
    assert step(pull_request, text, monkeypatch, outcome=outcome, code=code) == code
    [found] = checks(pull_request)
    assert (found["conclusion"], found["output"]["title"]) == (conclusion, title)
    assert found["output"]["summary"].strip() == text.partition("\n")[2].strip()
    assert (found["name"], found["head_sha"], found["status"]) == ("wsb check model.onnx b p", HEAD, "completed")
    assert found["details_url"] == "https://github.example/me/it/actions/runs/77"


@pytest.mark.parametrize(("code", "why"), [(2, "invalid input"), (3, "could not be evaluated"), (130, "ended early")])
def test_without_a_verdict_the_check_run_is_a_failure(
    pull_request: Path, monkeypatch: pytest.MonkeyPatch, code: int, why: str
) -> None:
    assert step(pull_request, "", monkeypatch, outcome="", code=code) == code
    [found] = checks(pull_request)
    assert (found["conclusion"], found["output"]["title"]) == ("failure", f"Sharpness: {why}")


def test_without_a_pull_request_the_check_run_is_on_the_commit_of_the_run(
    pull_request: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_REF", "refs/heads/main")
    (pull_request / "event.json").write_text('{"ref": "refs/heads/main"}')
    step(pull_request, COMMENT, monkeypatch)
    assert [found["head_sha"] for found in checks(pull_request)] == [MERGE]


def test_a_token_that_may_only_comment_leaves_the_comment_and_a_notice(
    pull_request: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert step(pull_request, "text", monkeypatch, **{"github-token": "no checks"}) == 1
    assert (comments(pull_request), checks(pull_request)) == (["text"], [])
    assert "::notice::No check run on the commit: it can't be added with this token" in capfd.readouterr().out


def test_a_run_elsewhere_than_on_github_says_what_is_missing(
    pull_request: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GITHUB_RUN_ID")
    assert step(pull_request, "text", monkeypatch) == 1
    assert "variables of GitHub Actions are incomplete (KeyError: 'GITHUB_RUN_ID')" in capfd.readouterr().out


def test_no_input_gets_into_the_filter_of_comments(pull_request: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step(pull_request, "text", monkeypatch, model='")) | .id, "$(touch ran)" --> `touch ran`')
    [line, *_] = (pull_request / "asked").read_text().splitlines()
    assert re.search(r'startswith\("<!-- wsb:[0-9a-f]{16} -->"\)\) \| \.id$', line)
    assert not (pull_request / "ran").exists()


def test_wsb_is_installed_from_the_action_where_it_is_missing(folder: Path) -> None:
    tools = folder / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "mkdir", "rm", "cat", "chmod"):
        found = shutil.which(tool)
        assert found is not None
        (tools / tool).symlink_to(found)
    wsb = '#!/usr/bin/env bash\nprintf "%s\\n" "$@" >checked\n'
    installs = f"echo \"$@\" >installed\ncat >'{tools}/wsb' <<'END'\n{wsb}END\nchmod +x '{tools}/wsb'\n"
    executable(tools / "python3", f"#!{tools}/bash\n{installs}")
    (tools / "env").symlink_to(str(shutil.which("env")))
    inputs = {"model": "--url=m", "batch": "b", "policy": "p", "baseline": "batch.npz", "url": "http://there"}
    code, outputs, _ = run_action(folder, path=str(tools), **inputs)
    assert (code, outputs["outcome"]) == (0, "passed")
    assert (folder / "installed").read_text().rstrip().endswith(f"{ROOT}/scripts/..")
    checked = (folder / "checked").read_text().splitlines()
    assert checked[-3:] == ["--", "--url=m", "b"]
    assert checked[checked.index("--baseline") + 1] == "batch.npz"
    assert checked[checked.index("--url") + 1] == "http://there"


def test_every_input_reaches_the_script_and_every_output_comes_from_it() -> None:
    (step,) = ACTION["runs"]["steps"]
    assert {f"${{{{ inputs.{name} }}}}" for name in ACTION["inputs"]} == set(step["env"].values())
    written = set(re.findall(r'echo "([\w-]+)=', (ROOT / "scripts" / "action").read_text()))
    assert {entry["value"] for entry in ACTION["outputs"].values()} == {
        f"${{{{ steps.check.outputs.{name} }}}}" for name in written
    }


def test_the_example_policy_is_one() -> None:
    assert len(load_policy(ROOT / "examples" / "ci" / "policy.toml").rule) == 3


@pytest.mark.parametrize(
    "name", [".pre-commit-hooks.yaml", "examples/ci/gitlab-ci.yml", "examples/ci/github-workflow.yml"]
)
def test_what_the_recipes_ask_of_wsb_exists(name: str) -> None:
    text = (ROOT / name).read_text()
    assert yaml.safe_load(text)
    check = wsb_here("check", "--help")
    assert check.returncode == 0
    flags = set(re.findall(r"(--(?:json|junit|html|markdown|verdict|policy|baseline|url)\b)", text))
    assert [flag for flag in flags if flag not in check.stdout] == []


def test_the_workflow_uses_inputs_and_outputs_that_the_action_has() -> None:
    workflow = yaml.safe_load((ROOT / "examples" / "ci" / "github-workflow.yml").read_text())
    (step,) = [step for step in workflow["jobs"]["sharpness"]["steps"] if step.get("id") == "wsb"]
    assert set(step["with"]) <= set(ACTION["inputs"])
    required = {name for name, entry in ACTION["inputs"].items() if entry.get("required")}
    assert required <= set(step["with"])
    used = re.findall(r"steps\.wsb\.outputs\.([\w-]+)", (ROOT / "examples" / "ci" / "github-workflow.yml").read_text())
    assert set(used) <= set(ACTION["outputs"])


@pytest.mark.slow
def test_the_hook_of_pre_commit_gets_torch_for_cpus(tmp_path: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    for index, version in (("usual", "2.9.0"), ("cpu", "2.9.0+cpu")):
        folder = tmp_path / index / "torch"
        folder.mkdir(parents=True)
        name = f"torch-{version}-py3-none-any.whl"
        metadata = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
        with zipfile.ZipFile(folder / name, "w") as wheel:
            wheel.writestr(f"torch-{version}.dist-info/METADATA", metadata)
            wheel.writestr(f"torch-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        (folder / "index.html").write_text(f'<a href="{name}">{name}</a>')
    [argument] = hook["additional_dependencies"]
    flag, _, _ = argument.partition("=")
    # In the order in which pre-commit gives them to pip, with a folder for each of the two indexes.
    command = [sys.executable, "-m", "pip", "install", "torch>=2.6", f"{flag}={(tmp_path / 'cpu').as_uri()}"]
    command += ["--isolated", "--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--report", "-"]
    command += ["--index-url", (tmp_path / "usual").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    [chosen] = json.loads(done.stdout)["install"]
    assert chosen["metadata"]["version"] == "2.9.0+cpu"
