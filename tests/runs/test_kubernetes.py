"""Runs in pods: against a stand-in for the API of Kubernetes, whose jobs are processes in a folder of their own."""

from __future__ import annotations

import base64
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from clusters import has_plugin
from conftest import ROOT, edit, snapshot

from scripts.project import Project
from scripts.runs import schedule
from scripts.runs.state import state

needs_kubernetes_plugin = pytest.mark.skipif(
    not (has_plugin("executor_plugin_kubernetes") and has_plugin("storage_plugin_fs") and shutil.which("rsync")),
    reason="nothing ran on Kubernetes: snakemake-executor-plugin-kubernetes, snakemake-storage-plugin-fs or rsync not here",
)


class Kubernetes(http.server.BaseHTTPRequestHandler):
    """As much of the API as the executor calls: it is told jobs and secrets, and asked how a job stands."""

    image: dict[str, str]
    """The environment of a container."""
    secrets: dict[str, dict[str, str]]
    jobs: dict[str, Any]
    processes: dict[str, subprocess.Popen[bytes]]
    folder: Path

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["metadata"]["name"]
        if self.path.endswith("/secrets"):
            self.secrets[name] = body.get("data", {})
        else:
            self.jobs[name] = body
            self.start(name, body["spec"]["template"]["spec"]["containers"][0])
        self.answer(body)

    def start(self, name: str, container: dict[str, Any]) -> None:
        references = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container.get("env", [])}
        told = {key: base64.b64decode(self.secrets[at["name"]][at["key"]]) for key, at in references.items()}
        workdir = self.folder / name
        workdir.mkdir()
        with (workdir / "out").open("w") as out:
            self.processes[name] = subprocess.Popen(
                [*container["command"], *container["args"]], cwd=workdir, stdout=out, stderr=subprocess.STDOUT,
                env={**self.image, **{key: value.decode() for key, value in told.items()}},
            )  # fmt: skip

    def do_GET(self) -> None:
        if "/jobs/" in self.path:
            code = self.processes[self.path.split("/")[-2]].poll()
            self.answer({"status": {} if code is None else {"failed" if code else "succeeded": 1}})
        elif self.path.split("?")[0].endswith("/log"):
            self.answer({"kind": "Status", "code": 400, "message": "previous terminated container not found"}, 400)
        else:
            name = urllib.parse.unquote(self.path).rpartition("job-name=")[2]
            self.answer({"kind": "PodList", "apiVersion": "v1", "items": [self.pod(name)]})

    def pod(self, name: str) -> dict[str, Any]:
        code = self.processes[name].poll()
        state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
        status = {"name": "snakemake", "ready": True, "restartCount": 0, "image": "", "imageID": "", "state": state}
        return {"metadata": {"name": f"{name}-pod"}, "status": {"containerStatuses": [status]}}

    def do_DELETE(self) -> None:
        self.answer({"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def answer(self, body: Any, code: int = 200) -> None:
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def kubernetes(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Kubernetes]]:
    image = tmp_path / "image"
    image.mkdir()
    (image / "pip").write_text("#!/bin/sh\n")  # the storage plugin is there already
    (image / "pip").chmod(0o755)
    path = os.pathsep.join([str(image), str(Path(sys.executable).parent), os.environ["PATH"]])
    attributes = {"secrets": {}, "jobs": {}, "processes": {}, "folder": tmp_path / "pods"}
    environment = {"PATH": path, "HOME": str(image), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    handler = type("Api", (Kubernetes,), {**attributes, "image": environment})
    handler.folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        named = {"name": "tiny", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        context = {"name": "tiny", "context": {"cluster": "tiny", "user": "tiny"}}
        config = {"clusters": [named], "contexts": [context], "users": [{"name": "tiny", "user": {}}]}
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump({**config, "current-context": "tiny"}))
        for name, value in {"KUBECONFIG": tmp_path / "kubeconfig", "RUN_VOLUME": "runs", "RUN_IMAGE": "i:1"}.items():
            monkeypatch.setenv(name, str(value))
        yield handler
        for process in handler.processes.values():
            process.kill()
            process.wait()
        server.shutdown()


@pytest.fixture
def managed(tiny: Project) -> Project:
    """The tiny project with the scripts inside, as a repository: Kubernetes is given the files that git knows."""
    shutil.copytree(ROOT / "scripts", tiny.root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (tiny.root / ".gitignore").write_text("build/\n.snakemake/\n__pycache__/\n")
    for arguments in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *arguments], cwd=tiny.root, check=True)
    return tiny


def run_in_pods(project: Project, device: str, *options: str) -> subprocess.CompletedProcess[str]:
    where = ["--preset", "smoke", "--device", device, "--profile", "kubernetes", *options]
    return subprocess.run(
        [sys.executable, "-m", "scripts", "run", *where],
        cwd=project.root, capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip


def logs(kubernetes: type[Kubernetes]) -> str:
    return "".join((kubernetes.folder / name / "out").read_text() for name in kubernetes.jobs)


@needs_kubernetes_plugin
@pytest.mark.parametrize(("device", "gpu"), [("cpu", None), ("cuda", "1")])
def test_examples_run_in_pods_and_come_back_through_the_cache(
    device: str, gpu: str | None, managed: Project, kubernetes: type[Kubernetes], cache: Path
) -> None:
    done = run_in_pods(managed, device)
    assert done.returncode == 0, done.stderr + logs(kubernetes)
    targets = schedule.wanted_targets(managed, ["alpha", "beta"], "smoke", device)
    assert [state(managed, wanted).status for wanted in targets] == ["ok", "ok"]
    assert all(snapshot(wanted.folder(managed)) == snapshot(cache / wanted.slug / wanted.key) for wanted in targets)
    containers = [job["spec"]["template"]["spec"]["containers"][0] for job in kubernetes.jobs.values()]
    assert [container["image"] for container in containers] == ["i:1", "i:1"]
    for asked in (container["resources"] for container in containers):
        assert asked["requests"].get("nvidia.com/gpu") == asked["limits"].get("nvidia.com/gpu") == gpu
        assert asked["limits"]["memory"] == "8000M"
        assert asked["requests"]["ephemeral-storage"] == "2000M"
    assert all({"name": "runs", "mountPath": str(cache)} in container["volumeMounts"] for container in containers)


@needs_kubernetes_plugin
def test_an_example_that_fails_in_a_pod_leaves_its_log_and_the_others_run(
    managed: Project, kubernetes: type[Kubernetes], cache: Path
) -> None:
    edit(
        managed.examples / "lab/record.py",
        '    (out / "record.json")',
        '    raise OSError("no oven for " + slug)\n    (out / "record.json")',
    )
    done = run_in_pods(managed, "cpu", "--jobs", "1")  # so that the second is sent after the first has failed
    assert done.returncode == 1
    for slug in ("alpha", "beta"):
        assert f"failed: {slug}" in done.stderr
        assert f"OSError: no oven for {slug}" in (cache / f"{slug}.log").read_text()
