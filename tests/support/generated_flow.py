"""Drives a generated client through a whole flow and prints what it was told; runs in the generator's environment.

python generated_flow.py URL MODEL BATCH, with the generated package `generated` on the path
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from generated import Client
from generated.api.analyses import cancel_analysis, create_analysis, get_analysis, get_report, stream_events
from generated.api.batches import upload_batch
from generated.api.models import upload_model
from generated.models.analysis import Analysis
from generated.models.analysis_request import AnalysisRequest
from generated.models.options import Options
from generated.models.problem import Problem
from generated.models.report import Report
from generated.types import File


def main(url: str, model: str, batch: str) -> dict[str, object]:
    client = Client(base_url=url)
    files = {
        "model": upload_model.sync(client=client, body=File(io.BytesIO(Path(model).read_bytes()))).id,
        "batch": upload_batch.sync(client=client, body=File(io.BytesIO(Path(batch).read_bytes()))).id,
    }
    told: dict[str, object] = {}

    analysis = create_analysis.sync(client=client, body=AnalysisRequest(**files))
    assert isinstance(analysis, Analysis)
    lines = str(stream_events.sync(analysis.id, client=client)).splitlines()
    told["events"] = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    report = get_report.sync(analysis.id, client=client)
    assert isinstance(report, Report)
    told["parameters"] = report.model.parameters.count

    nothing = create_analysis.sync(
        client=client, body=AnalysisRequest(model="sha256:" + "0" * 64, batch=files["batch"])
    )
    assert isinstance(nothing, Problem)
    told["nothing"] = [nothing.status, nothing.code]
    invalid = create_analysis.sync(client=client, body=AnalysisRequest(**files, priority=1000))
    assert isinstance(invalid, Problem)
    told["invalid"] = [invalid.status, invalid.code, [error.pointer for error in invalid.errors]]

    slow = create_analysis.sync(client=client, body=AnalysisRequest(**files, options=Options(output="sleep:60")))
    assert isinstance(slow, Analysis)
    cancelled = cancel_analysis.sync(slow.id, client=client)
    assert isinstance(cancelled, Analysis)
    stream_events.sync(slow.id, client=client)
    told["cancelled"] = str(get_analysis.sync(slow.id, client=client).state)
    final = cancel_analysis.sync(analysis.id, client=client)
    assert isinstance(final, Problem)
    told["final"] = [final.status, final.code, final.analysis]
    told["analysis"] = str(analysis.id)
    return told


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
