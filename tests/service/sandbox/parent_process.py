"""A process that tests kill: it runs a job that hangs, and says who its descendants are.

Run as ``parent_process.py FOLDER ENTRY [hold] [brief]``; with ``hold``, another process keeps all of its descriptors
open; with ``brief``, the job has a second to run.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from service.sandbox import Job, Zygote


async def main(folder: Path, entry: str, *, hold: bool, seconds: float) -> None:
    async with Zygote(["unsealed", "sandbox_entries"], python_path=[Path(__file__).parent]) as zygote:
        pids = {"zygote": zygote.pid}

        def report(fields: dict[str, int]) -> None:
            pids.update(fields)
            if hold:
                pids["holder"] = os.fork()
                if pids["holder"] == 0:
                    signal.pause()
            sys.stdout.write(json.dumps(pids) + "\n")
            sys.stdout.flush()

        await zygote.run(Job(folder=folder, entry=f"sandbox_entries:{entry}", request={}, seconds=seconds), report)


asyncio.run(
    main(Path(sys.argv[1]), sys.argv[2], hold="hold" in sys.argv, seconds=1.0 if "brief" in sys.argv else 600.0)
)
