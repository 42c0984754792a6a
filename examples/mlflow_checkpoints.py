"""Log the sharpness of every run of an MLflow experiment as metrics of the run.

python examples/mlflow_checkpoints.py EXPERIMENT BATCH.npz [ARTIFACT]

ARTIFACT is the path of the ONNX file among a run's artifacts, by default model.onnx; data files beside it that bear its
name, such as model.onnx.data, are read too. Runs that already have the metric, and runs without the artifact, are
skipped. Exit code 1: a model could not be analysed; the other runs have their metrics. Requires the package mlflow, and
MLFLOW_TRACKING_URI unless runs are where mlflow keeps them by default.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from typing import Any

import wsb_engine as wsb
from wsb_engine.report import Report

DONE = "wsb.lambda_max_upper"


def metrics(report: Report) -> dict[str, float]:
    """Return the numbers of a report that are worth a curve in MLflow."""
    found = {"wsb.loss": report.loss.value, "wsb.gradient_norm": report.loss.gradient_norm}
    if report.bounds is not None:
        found["wsb.wolkowicz_styan_upper"] = report.bounds.wolkowicz_styan.lambda_max.upper
    if report.enclosure is not None:
        found["wsb.lambda_max_lower"] = report.enclosure.lambda_max.lower
        found[DONE] = report.enclosure.lambda_max.upper
    return found


def files(client: Any, run_id: str, artifact: str) -> list[str]:
    """List the artifact of a run and its data files; empty if the run lacks the artifact."""
    parent, _, _ = artifact.rpartition("/")
    paths = [entry.path for entry in client.list_artifacts(run_id, parent or None) if not entry.is_dir]
    return [path for path in paths if path == artifact or path.startswith(f"{artifact}.")] if artifact in paths else []


def analyse(mlflow: Any, run_id: str, paths: list[str], artifact: str, batch: wsb.Batch) -> Report:
    """Download the files of a model and analyse it."""
    with tempfile.TemporaryDirectory() as folder:
        download = partial(mlflow.artifacts.download_artifacts, run_id=run_id, dst_path=folder)
        local = {path: download(artifact_path=path) for path in paths}
        return wsb.analyze(wsb.load_model(local[artifact]), batch)


def log_sharpness(mlflow: Any, experiment: str, batch_path: str, artifact: str) -> int:
    """Analyse the artifact of each run that does not have the metrics yet; return how many analyses failed."""
    if mlflow.get_experiment_by_name(experiment) is None:
        raise SystemExit(f"there is no experiment {experiment!r}")
    client = mlflow.MlflowClient()
    batch = wsb.load_batch(batch_path)
    failures = 0
    for run in mlflow.search_runs(experiment_names=[experiment], output_format="list"):
        run_id = run.info.run_id
        if DONE in run.data.metrics:
            continue
        paths = files(client, run_id, artifact)
        if not paths:
            print(f"{run_id}: skipped, since it has no artifact {artifact}", flush=True)
            continue
        try:
            report = analyse(mlflow, run_id, paths, artifact, batch)
        except wsb.EngineError as error:
            failures += 1
            print(f"{run_id}: not analysed: {error}", file=sys.stderr, flush=True)
            continue
        for name, value in metrics(report).items():
            client.log_metric(run_id, name, value)
        client.log_text(run_id, report.model_dump_json(indent=2), "wsb-report.json")
        print(f"{run_id}: {metrics(report)}", flush=True)
    return failures


def main() -> None:
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    try:
        import mlflow
    except ImportError:
        print("mlflow is not installed, so there is nothing to do: pip install mlflow", file=sys.stderr)
        return
    artifact = sys.argv[3] if len(sys.argv) == 4 else "model.onnx"
    if log_sharpness(mlflow, sys.argv[1], sys.argv[2], artifact):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
