"""Runs the image that scripts/image has built as a container of the strictest kind, uses it, and stops it.

The container has a read-only root, no capabilities, the system calls of the runtime's default profile, and nothing to
write to but its data folder and a small /tmp. Its network is this process's, which scripts/image has set apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from demo import export, train

URL = "http://127.0.0.1:8000"
USER = 10001
SECCOMP = Path("/usr/share/containers/seccomp.json")
READY_SECONDS, STOP_SECONDS, ANALYSIS_SECONDS = 120, 30, 60
READ_ONLY = ("/", "/etc", "/home", "/opt/wsb", "/opt/wsb/bin", "/srv", "/usr/local", "/var", "/var/lib", "/var/log")
PROBE = """
import errno, json, os, sys
outcomes = {}
for folder in sys.argv[1:]:
    try:
        open(os.path.join(folder, "probe"), "x").close()
        outcomes[folder] = "written"
    except OSError as error:
        outcomes[folder] = errno.errorcode[error.errno]
print(json.dumps(outcomes))
"""


def expect(truth: object, text: str) -> None:
    if not truth:
        raise SystemExit(f"NOT AS IT SHOULD BE: {text}")
    print(f"  {text}")


def until(condition: Callable[[], Any], text: str, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"NOT IN {seconds} s: {text}")
        time.sleep(0.05)
    return value


class Container:
    """What can be run from one unpacked image.

    Args:
        root: The image's files.
        image: What ``buildah inspect`` says of it.
        work: Folder for the data folder, the runtime's state and its configuration.
    """

    def __init__(self, root: Path, image: dict[str, Any], work: Path) -> None:
        self.config = image["Docker"]["config"]
        self.data = work / "data"
        self._root, self._bundle = root, work / "bundle"
        self._crun = ("crun", "--cgroup-manager=disabled", "--root", str(work / "crun"))
        for folder in (self.data, self._bundle):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        os.chown(self.data, USER, USER)

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """The image's command, or another one in its place, as ``docker run`` would."""
        self._configure([*self.config["Entrypoint"], *(command or self.config["Cmd"])], environment)
        arguments = (*self._crun, "run", "--bundle", str(self._bundle), "wsb")
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A further command in the running container, as ``docker exec`` would."""
        arguments = (*self._crun, "exec", "--user", self.config["User"], "wsb", *command)
        return subprocess.run(arguments, capture_output=True, text=True, timeout=60)

    def signal(self, name: str) -> None:
        subprocess.run((*self._crun, "kill", "wsb", name), check=True)

    def remove(self) -> None:
        subprocess.run((*self._crun, "delete", "--force", "wsb"), capture_output=True)

    def processes(self) -> list[dict[str, str]]:
        """The lines of /proc/PID/status of each process inside."""
        state = subprocess.run((*self._crun, "state", "wsb"), capture_output=True, text=True, check=True)
        inside = os.readlink(f"/proc/{json.loads(state.stdout)['pid']}/ns/pid")
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(folder / "ns/pid") == inside:
                    lines = (folder / "status").read_text().splitlines()
                    found.append({name: value.strip() for name, _, value in (line.partition(":") for line in lines)})
        return found

    def _configure(self, command: list[str], environment: dict[str, str]) -> None:
        path = self._bundle / "config.json"
        path.unlink(missing_ok=True)
        subprocess.run(("crun", "spec"), cwd=self._bundle, check=True)
        spec = json.loads(path.read_text())
        uid, _, gid = self.config["User"].partition(":")
        spec["root"] = {"path": str(self._root), "readonly": True}
        spec["process"] |= {
            "terminal": False,
            "user": {"uid": int(uid), "gid": int(gid)},
            "args": command,
            "env": [*self.config["Env"], "HOME=/var/lib/wsb", *(f"{k}={v}" for k, v in environment.items())],
            "cwd": self.config["WorkingDir"] or "/",
            "capabilities": {},
            "noNewPrivileges": True,
            "rlimits": [],
        }
        kept = ("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys")  # noqa: S108 - of the container
        spec["mounts"] = [mount for mount in spec["mounts"] if mount["destination"] in kept]
        tmpfs = {"type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "noexec", "mode=1777", "size=64m"]}
        data = {"type": "bind", "source": str(self.data), "options": ["bind", "rw", "nosuid", "nodev"]}
        spec["mounts"] += [{"destination": "/tmp", **tmpfs}, {"destination": "/var/lib/wsb", **data}]  # noqa: S108
        spec["linux"]["namespaces"] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
        spec["linux"]["seccomp"] = seccomp_profile()
        path.write_text(json.dumps(spec))


def seccomp_profile() -> dict[str, Any]:
    """The default profile of Debian's container tools, in the runtime's form, for a process without capabilities."""
    profile = json.loads(SECCOMP.read_text())
    machine, architecture = {
        "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
        "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    }[platform.machine()]

    def applies(rule: dict[str, Any]) -> bool:
        includes = rule.get("includes") or {}
        return not includes.get("caps") and machine in includes.get("arches", [machine])

    rules = [
        {key: rule[key] for key in ("names", "action", "errnoRet", "args") if rule.get(key) is not None}
        for rule in profile["syscalls"]
        if applies(rule)
    ]
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": [architecture],
        "syscalls": rules,
    }


@contextlib.contextmanager
def serving(container: Container, **environment: str) -> Iterator[httpx.Client]:
    """Run the image's command until it is ready to analyse; stop it at the end, and check that it stops properly."""
    began = time.monotonic()
    with (container.data.parent / "container.log").open("a") as log:
        process = container.start(**environment)
        process.stderr, errors = None, process.stderr
        copying = subprocess.Popen(("cat",), stdin=errors, stdout=log)
    try:
        with httpx.Client(base_url=URL, timeout=90) as client:

            def ready() -> bool:
                if process.poll() is not None:
                    raise SystemExit(f"the container ended with {process.returncode}; see build/image/container.log")
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/readyz").status_code == 200
                return False

            until(ready, "ready", READY_SECONDS)
            print(f"  ready after {time.monotonic() - began:.1f} s")
            yield client
        began = time.monotonic()
        container.signal("TERM")
        code = process.wait(STOP_SECONDS)
        expect(code == 0, f"SIGTERM ends it with exit code {code}, in {time.monotonic() - began:.1f} s")
    finally:
        container.remove()
        copying.wait(STOP_SECONDS)


def check_refusal(container: Container) -> None:
    process = container.start()
    _, errors = process.communicate(timeout=READY_SECONDS)
    refused = process.returncode == 2 and "WSB_API_KEYS" in errors
    expect(refused, f"without keys it ends with exit code {process.returncode}, and says what to set")


def make_key(container: Container) -> tuple[str, str]:
    """A new key, and its entry for the server."""
    output, _ = container.start("wsb", "keys", "new", "ci").communicate(timeout=READY_SECONDS)
    key, entry = (line.partition("=")[2] for line in output.splitlines())
    return key, entry


def check_confinement(container: Container, client: httpx.Client) -> None:
    processes = container.processes()
    first = next(process for process in processes if process["NSpid"].split()[-1] == "1")
    expect(first["Name"] == "tini", f"process 1 of {len(processes)} is {first['Name']}")
    expect(all(set(p["Uid"].split()) == {str(USER)} for p in processes), f"every process is user {USER}")
    expect(all(int(p["CapBnd"], 16) == 0 for p in processes), "no process has or can get a capability")
    expect(all(p["NoNewPrivs"] == "1" and p["Seccomp"] == "2" for p in processes), "system calls are filtered")
    writable = ("/tmp", "/var/lib/wsb")  # noqa: S108 - of the container
    outcomes = json.loads(container.execute("python3", "-c", PROBE, *READ_ONLY, *writable).stdout)
    expect(all(outcomes[folder] == "EROFS" for folder in READ_ONLY), f"no file can be made in {', '.join(READ_ONLY)}")
    expect(all(outcomes[folder] == "written" for folder in writable), f"files can be made in {', '.join(writable)}")
    container.execute("sh", "-c", "sleep 0.1 & exec true")
    until(lambda: all(p["Name"] != "sleep" for p in container.processes()), "orphans are reaped", STOP_SECONDS)
    print("  orphans are reaped")
    health = container.execute(*container.config["Healthcheck"]["Test"][1:])
    expect(health.returncode == 0, "the health check passes")
    expect(client.get("/v1/capabilities").status_code == 401, "without a key it answers 401")


def check_analysis(client: httpx.Client, key: str, work: Path) -> str:
    """Posts a model and a batch; gives the path of the report."""
    model, x, y, _ = train()
    export(model.eval(), x, work / "model.onnx")
    np.savez(work / "batch.npz", x=x, y=y)
    client.headers["Authorization"] = f"Bearer {key}"
    print(f"  /v1/capabilities: {json.dumps(client.get('/v1/capabilities').json()['sandbox'])}")
    began = time.monotonic()
    with (work / "model.onnx").open("rb") as model_file, (work / "batch.npz").open("rb") as batch_file:
        response = client.post(
            "/v1/analyses",
            files={"model": model_file, "batch": batch_file},
            headers={"Prefer": f"wait={ANALYSIS_SECONDS}"},
        )
    if response.status_code != 201:
        raise SystemExit(f"NOT AS IT SHOULD BE: an analysis is answered {response.status_code}: {response.text}")
    report = response.json()
    bound, enclosed = report["bounds"]["wolkowicz_styan"]["lambda_max"], report["enclosure"]["lambda_max"]
    holds = bound["lower"] <= enclosed["upper"] and enclosed["lower"] <= bound["upper"]
    seconds = time.monotonic() - began
    expect(
        holds, f"λ_max in [{enclosed['lower']:.6g}, {enclosed['upper']:.6g}] ≤ {bound['upper']:.6g}, {seconds:.1f} s"
    )
    return str(client.get("/v1/analyses").json()["items"][0]["links"]["report"])


def main(root: Path, inspected: Path) -> None:
    work = inspected.parent
    (work / "container.log").unlink(missing_ok=True)
    container = Container(root, json.loads(inspected.read_text()), work)
    print("A container …")
    check_refusal(container)
    key, entry = make_key(container)
    settings = {"WSB_API_KEYS": entry, "WSB_SANDBOX": "require"}
    with serving(container, **settings) as client:
        check_confinement(container, client)
        report = check_analysis(client, key, work)
    print("Another one with the same data …")
    with serving(container, **settings) as client:
        answer = client.get(report, headers={"Authorization": f"Bearer {key}"})
        expect(answer.status_code == 200, "the report is still there")
        expect(all("Z" not in p["State"] for p in container.processes()), "no zombies")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
