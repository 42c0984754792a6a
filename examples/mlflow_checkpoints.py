"""Log the sharpness of every run of an MLflow experiment as metrics of the run.

python examples/mlflow_checkpoints.py EXPERIMENT BATCH.npz [ARTIFACT]

ARTIFACT is the path of the ONNX file among a run's artifacts, by default model.onnx. Runs that already have
the metric are skipped. Requires the package mlflow, and MLFLOW_TRACKING_URI unless runs are in a local folder.
"""

from __future__ import annotations

import sys
import tempfile
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


def log_sharpness(mlflow: Any, experiment: str, batch_path: str, artifact: str) -> None:
    """Analyse the artifact of each run that does not have the metrics yet."""
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise SystemExit(f"there is no experiment {experiment!r}")
    batch = wsb.load_batch(batch_path)
    for run in client.search_runs([found.experiment_id]):
        if DONE in run.data.metrics:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=artifact, dst_path=folder)
            report = wsb.analyze(wsb.load_model(path), batch)
        for name, value in metrics(report).items():
            client.log_metric(run.info.run_id, name, value)
        client.log_text(run.info.run_id, report.model_dump_json(indent=2), "wsb-report.json")
        print(f"{run.info.run_id}: {metrics(report)}", flush=True)


def main() -> None:
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    try:
        import mlflow
    except ImportError:
        print("mlflow is not installed, so there is nothing to do: pip install mlflow", file=sys.stderr)
        return
    log_sharpness(mlflow, sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) == 4 else "model.onnx")


if __name__ == "__main__":
    main()
