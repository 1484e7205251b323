"""Runs on several machines: they share what is finished, and a scheduler is asked for what a run needs."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import getpass
import http.server
import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Command, edit

from scripts.project import Project
from scripts.runs import cache as shared
from scripts.runs import job, schedule
from scripts.runs.record import SUMS, seal
from scripts.runs.state import SECONDS_LIMIT, Target, state, target

SLURM = schedule.PROFILES / "slurm"


def has_plugin(name: str) -> bool:
    return importlib.util.find_spec(f"snakemake_{name}") is not None


def program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def lacking_for_slurm() -> list[str]:
    lacking = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if program(name) is None]
    return lacking if has_plugin("executor_plugin_slurm") else [*lacking, "snakemake-executor-plugin-slurm"]


needs_slurm_plugin = pytest.mark.skipif(
    not has_plugin("executor_plugin_slurm"),
    reason="no snakemake-executor-plugin-slurm here, so no profile for Slurm was tested",
)
needs_kubernetes_plugin = pytest.mark.skipif(
    not (has_plugin("executor_plugin_kubernetes") and has_plugin("storage_plugin_fs") and shutil.which("rsync")),
    reason="nothing ran on Kubernetes: snakemake-executor-plugin-kubernetes, snakemake-storage-plugin-fs or rsync not here",
)
needs_slurm = pytest.mark.skipif(
    bool(lacking_for_slurm()),
    reason=f"nothing ran on Slurm, {', '.join(lacking_for_slurm())} not here: apt-get install slurm-wlm munge",
)


# Shared runs


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("RUN_CACHE", str(folder))
    return folder


def alpha(project: Project) -> Target:
    return target(project, "alpha", "quick", "cpu")


def run_alpha(project: Project) -> Target:
    wanted = alpha(project)
    assert job.execute(project, wanted.slug, wanted.key) == 0
    return wanted


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def forget_runs(project: Project) -> None:
    shutil.rmtree(project.runs)


def no_script(*_: object) -> list[str]:
    pytest.fail("the script ran")


def test_a_run_of_another_machine_is_taken_and_its_script_does_not_run(
    tiny: Project, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Project(tmp_path / "other")
    shutil.copytree(tiny.root, other.root, symlinks=True)
    wanted = run_alpha(tiny)
    monkeypatch.setattr(job, "_run_script", no_script)
    run_alpha(other)
    assert contents(other.runs) == contents(tiny.runs) == contents(cache)
    assert state(other, wanted).status == "ok"


def test_runs_that_are_all_in_the_cache_need_no_scheduler(
    tiny: Project, cache: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slug in ("alpha", "beta"):
        assert job.execute(tiny, slug, target(tiny, slug, "quick", "cpu").key) == 0
    forget_runs(tiny)
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "_snakemake", no_script)
        done = command("run", "--device", "cpu")
    assert (done.returncode, done.stdout) == (0, "2 examples, 2 from the run cache, all up to date\n")
    assert command("run", "--device", "cpu").stdout == "2 examples, all up to date\n"


@pytest.mark.slow
def test_what_the_cache_lacks_is_run_and_put_there(tiny: Project, cache: Path, command: Command) -> None:
    run_alpha(tiny)
    forget_runs(tiny)
    done = command("run", "--device", "cpu", "--jobs", "1")
    assert done.returncode == 0
    assert "2 examples, 1 from the run cache, 1 to run, 1 at a time" in done.stdout
    assert sorted(path.name for path in cache.iterdir()) == ["alpha", "beta"]
    assert contents(cache / "beta") == contents(tiny.runs / "beta")


@pytest.mark.parametrize("damage", ["cut", "half", "figure edited", "sums gone", "empty"])
def test_a_damaged_run_in_the_cache_is_ignored_and_replaced(damage: str, tiny: Project, cache: Path) -> None:
    wanted = run_alpha(tiny)
    whole = contents(cache)
    folder = cache / "alpha" / wanted.key
    match damage:
        case "cut":
            (folder / "record.json").write_text((folder / "record.json").read_text()[:100])
        case "half":
            (folder / "record.json").unlink()
        case "figure edited":
            (folder / "figures/margin.dark.svg").write_text("<svg/>")
        case "sums gone":
            (folder / SUMS).unlink()
        case _:
            shutil.rmtree(folder)
            folder.mkdir()
    forget_runs(tiny)
    assert not shared.fetch(tiny, wanted)
    assert not wanted.folder(tiny).exists()
    run_alpha(tiny)
    assert contents(cache) == whole
    assert [path.name for path in (cache / "alpha").iterdir()] == [wanted.key]


def test_the_run_of_the_machine_that_was_first_stays(tiny: Project, cache: Path) -> None:
    wanted = run_alpha(tiny)
    record = cache / "alpha" / wanted.key / "record.json"
    before = record.stat()
    edit(wanted.record(tiny), '"seconds": 0.1', '"seconds": 0.7')
    seal(wanted.folder(tiny))
    shared.put(tiny, wanted)
    assert record.stat() == before
    shared.land(wanted.folder(tiny), cache / "alpha" / wanted.key)  # it came while this one was copied
    assert record.stat() == before


def test_machines_that_share_a_run_at_the_same_time_leave_one_whole_run(tiny: Project, cache: Path) -> None:
    wanted = run_alpha(tiny)
    for _ in range(5):
        (cache / "alpha" / wanted.key / "record.json").unlink(missing_ok=True)
        with concurrent.futures.ThreadPoolExecutor(8) as machines:
            list(machines.map(lambda _: shared.put(tiny, wanted), range(8)))
        assert [path.name for path in (cache / "alpha").iterdir()] == [wanted.key]
        assert contents(cache / "alpha") == contents(tiny.runs / "alpha")


def test_a_copy_that_breaks_off_leaves_nothing(
    tiny: Project, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = run_alpha(tiny)
    forget_runs(tiny)
    copy: Callable[[str, str], object] = shutil.copyfile

    def broken(source: str, to: str) -> object:
        if source.endswith("record.json"):
            raise OSError(5, "Input/output error")
        return copy(source, to)

    monkeypatch.setattr(shutil, "copyfile", broken)
    assert not shared.fetch(tiny, wanted)
    assert list((tiny.runs / "alpha").iterdir()) == []
    assert capfd.readouterr().err.startswith("warning: no runs are shared through ")


@pytest.mark.parametrize("trouble", ["not there", "a file", "not writable"])
def test_a_cache_that_cannot_be_used_costs_one_line_of_warning_and_no_run(
    trouble: str, tiny: Project, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    if trouble == "not writable":
        monkeypatch.setattr(shutil, "copytree", refused)  # root may write everywhere
    else:
        cache.rmdir()
    if trouble == "a file":
        cache.write_text("")
    wanted = run_alpha(tiny)
    assert state(tiny, wanted).status == "ok"
    reason = {
        "not there": "No such file or directory",
        "a file": "Not a directory",
        "not writable": "Permission denied",
    }
    assert capfd.readouterr().err == f"warning: no runs are shared through {cache}: {reason[trouble]}\n"
    assert not cache.is_dir() or contents(cache) == {}


def test_a_run_under_way_elsewhere_is_not_forgotten_with_the_old_ones(tiny: Project) -> None:
    under_way = tiny.runs / "alpha/.full-cuda-0123456789ab.part"
    dead = tiny.runs / "alpha/.full-cuda-ba9876543210.part"
    for folder in (under_way, dead):
        folder.mkdir(parents=True)
    long_ago = time.time() - 2 * SECONDS_LIMIT["full"]
    os.utime(dead, (long_ago, long_ago))
    for i in range(job.KEPT_RUNS + 1):
        edit(tiny.examples / "alpha.py", "It measures" + " " * i, "It measures" + " " * (i + 1))
        run_alpha(tiny)
    assert under_way.exists()
    assert not dead.exists()


# What a scheduler is asked for


def test_a_run_on_a_gpu_asks_for_one_and_a_run_on_a_cpu_for_none() -> None:
    assert schedule.gpus_asked("full-cuda-0123456789ab") == 1
    assert schedule.gpus_asked("quick-cpu-0123456789ab") is None


@pytest.mark.parametrize("preset", ["smoke", "quick", "full"])
def test_a_scheduler_is_asked_for_more_minutes_than_a_run_may_take(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"{preset}-cpu-0123456789ab"
    assert schedule.minutes_asked(key) * 60 - SECONDS_LIMIT[preset] == schedule.MINUTES_AROUND * 60
    monkeypatch.setenv("EXAMPLE_SECONDS_LIMIT", "61")
    assert schedule.minutes_asked(key) == 2 + schedule.MINUTES_AROUND


def test_an_unknown_profile_is_named_with_those_there_are(command: Command) -> None:
    done = command("run", "--profile", "nowhere")
    assert done.returncode == 1
    assert done.stderr == "no profile nowhere; there are kubernetes, slurm, or a folder with a config.yaml\n"


def test_a_profile_is_found_by_its_name_and_by_its_folder(tmp_path: Path) -> None:
    assert schedule.profile_folder("slurm") == SLURM
    assert schedule.profile_folder(str(quick_profile(tmp_path / "slurm"))) == tmp_path / "slurm"


def test_a_profile_names_the_environment_variable_that_it_lacks(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RUN_CACHE", "RUN_VOLUME", "RUN_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    done = command("run", "--profile", "kubernetes")
    assert done.returncode == 1
    assert done.stderr == (
        "the profile kubernetes needs the environment variable RUN_IMAGE; see docs/about/cluster.md\n"
    )


def quick_profile(folder: Path) -> Path:
    """The profile for Slurm, which asks more often, and without accounting."""
    folder.mkdir()
    added = ["status-command: squeue", "init-seconds-before-status-checks: 2"]
    lines = [(SLURM / "config.yaml").read_text("utf-8"), *(f"slurm-{line}\n" for line in added)]
    (folder / "config.yaml").write_text("".join(lines) + "seconds-between-status-checks: 2\n")
    return folder


STUB = '#!/bin/sh\necho "$@" >> "$CALLS/$(basename "$0")"\n'


@pytest.mark.slow
@needs_slurm_plugin
@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0), ("cuda", 1)])
def test_slurm_is_asked_for_memory_minutes_and_a_gpu_only_by_a_run_on_a_gpu(
    device: str, gpus: int, tiny: Project, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name in ("sbatch", "sinfo", "sacct", "sacctmgr", "squeue", "scontrol", "sshare", "scancel"):
        (stubs / name).write_text(STUB + ("exit 1\n" if name == "sbatch" else ""))
        (stubs / name).chmod(0o755)
    monkeypatch.setenv("CALLS", str(tmp_path))
    monkeypatch.setenv("PATH", f"{stubs}{os.pathsep}{os.environ['PATH']}")
    profile = quick_profile(tmp_path / "slurm")
    done = command("run", "alpha", "--preset", "quick", "--device", device, "--profile", str(profile))
    assert done.returncode == 1
    first, second = (tmp_path / "sbatch").read_text().splitlines()  # it is tried twice
    asked = first.split(" --wrap")[0].split()
    assert [option for option in asked if "gpu" in option] == ["--gpus=1"] * gpus
    assert asked[asked.index("--mem") + 1] == "8000"
    assert asked[asked.index("-t") + 1] == str(SECONDS_LIMIT["quick"] // 60 + schedule.MINUTES_AROUND)
    assert "--mem 16000" in second
    assert "-p" not in asked


# A cluster of one node

SETTINGS = """
ClusterName=tiny
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1
KillWait=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=40000 Gres=gpu:1 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """Slurm with one node, whose GPU is /dev/null, and without accounting."""

    profile: Path
    """The profile of this project, with what such a cluster needs added."""

    def jobs(self) -> list[dict[str, str]]:
        """What Slurm knows of its jobs, the finished ones among them."""
        lines = slurm("scontrol", "show", "job", "--oneliner").splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines if "JobId=" in line]


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300).stdout


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def write_settings(folder: Path, host: str) -> None:
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir(parents=True)
    control_port, node_port = free_ports(2)
    settings = SETTINGS.format(
        folder=folder, host=host, user=getpass.getuser(), control_port=control_port, node_port=node_port
    )
    (folder / "slurm.conf").write_text(settings)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    srun = folder / "bin/srun"  # the plugin takes SLURM_CONF away from it
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {program("srun")} "$@"\n')
    srun.chmod(0o755)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: the path of a socket has a limit
    folder.chmod(0o755)  # munged wants its socket to be reached by all
    host = socket.gethostname().partition(".")[0]
    write_settings(folder, host)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    munge = [f"--{name}={folder}/munge.{end}" for name, end in MUNGE.items()]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(daemon(folder, "munged", "--foreground", *munge))
        wait_until(lambda: (folder / "munge.socket").exists())
        stack.enter_context(daemon(folder, "slurmctld", "-D"))
        stack.enter_context(daemon(folder, "slurmd", "-D", "-N", host))
        wait_until(lambda: slurm("sinfo", "--noheader", "--format=%T").strip() == "idle")
        yield Cluster(quick_profile(folder / "slurm"))
        slurm("scancel", "--user", getpass.getuser(), "--signal=KILL")


MUNGE = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}


@contextlib.contextmanager
def daemon(folder: Path, name: str, *options: str) -> Iterator[None]:
    """A daemon that ends with the test, however that ends."""
    with (folder / f"{name}.out").open("w") as out:
        process = subprocess.Popen([str(program(name)), *options], stdout=out, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until(ready: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "the cluster did not come up"
        time.sleep(0.2)


@needs_slurm
def test_examples_run_on_slurm_and_leave_their_records(tiny: Project, command: Command, cluster: Cluster) -> None:
    where = ("--preset", "smoke", "--device", "cuda", "--profile", str(cluster.profile))
    edit(tiny.examples / "beta.py", "record.write", "print(f\"job {os.environ['SLURM_JOB_ID']}\"); record.write")
    edit(tiny.examples / "beta.py", "from lab", "import os\n\nfrom lab")
    done = command("run", *where)
    assert done.returncode == 0, done.stderr
    assert "2 examples, 2 to run, by the profile slurm" in done.stdout
    targets = schedule.wanted_targets(tiny, ["alpha", "beta"], "smoke", "cuda")
    assert [state(tiny, wanted).status for wanted in targets] == ["ok", "ok"]
    jobs = cluster.jobs()
    assert [(job["JobState"], job["TresPerJob"]) for job in jobs] == [("COMPLETED", "gres:gpu:1")] * 2
    assert (tiny.build / "logs/beta.log").read_text().strip() in {f"job {job['JobId']}" for job in jobs}
    assert command("run", *where).stdout == "2 examples, all up to date\n"


@needs_slurm
def test_an_example_that_fails_on_slurm_is_told_and_the_others_run(
    tiny: Project, command: Command, cluster: Cluster
) -> None:
    edit(tiny.examples / "alpha.py", "    write(", '    raise RuntimeError("the oven is cold")\n    write(')
    done = command("run", "--preset", "smoke", "--device", "cpu", "--profile", str(cluster.profile), "--jobs", "2")
    assert done.returncode == 1
    assert "failed: alpha, see build/logs/alpha.log" in done.stderr
    alpha, beta = schedule.wanted_targets(tiny, ["alpha", "beta"], "smoke", "cpu")
    assert "RuntimeError: the oven is cold" in state(tiny, alpha).error
    assert state(tiny, beta).status == "ok"
    jobs = cluster.jobs()
    assert sorted(job["JobState"] for job in jobs) == ["COMPLETED", "FAILED", "FAILED"]
    assert not any("TresPerJob" in job for job in jobs)


# Kubernetes: a stand-in for its API, whose jobs are processes in a folder of their own


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
    assert all(contents(wanted.folder(managed)) == contents(cache / wanted.slug / wanted.key) for wanted in targets)
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


def test_two_jobs_that_make_the_same_run_do_not_disturb_each_other(tiny: Project) -> None:
    edit(tiny.examples / "alpha.py", "    write(", "    import time; time.sleep(0.5)\n    write(")
    wanted = alpha(tiny)
    with concurrent.futures.ThreadPoolExecutor(3) as jobs:
        codes = list(jobs.map(lambda _: job.execute(tiny, wanted.slug, wanted.key), range(3)))
    assert codes == [0, 0, 0]
    assert state(tiny, wanted).status == "ok"
    assert [path.name for path in (tiny.runs / "alpha").iterdir()] == [wanted.key]
