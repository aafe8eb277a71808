"""cluster/submit.sh sends the training to a running cluster, and only with its token."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from hstvg.runtime.track_jsonl import read_metrics

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def submit(*overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script, in an environment that names no cluster and no token but those given."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [str(ROOT / "cluster" / "submit.sh"), *overrides],
        env={**inherited, "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# ---- refused before anything is sent ----------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "environment", "said"),
    [
        ([], {}, "no token at"),
        ([], {"RAY_ADDRESS": "http://192.0.2.1:8265", "RAY_AUTH_TOKEN": "x"}, "not encrypted"),
        ([], {"RAY_ADDRESS": "somewhere", "RAY_AUTH_TOKEN": "x"}, "no job server address"),
        (["data.path=not/here"], {"RAY_AUTH_TOKEN": "x"}, "data.path: no 'not/here' here"),
        ([], {"HSTVG_PIPELINE": "demo", "RAY_AUTH_TOKEN": "x"}, "HSTVG_PIPELINE"),
    ],
)
def test_a_wrong_submission_is_refused_in_one_line(overrides, environment, said, tmp_path):
    done = submit(*overrides, HOME=str(tmp_path), **environment)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


# ---- a real cluster ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """A running head node that asks for a token."""

    address: str
    token: str

    def ask(self, path: str, token: str | None) -> int:
        """HTTP status of a question to its job server."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"{self.address}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses, found by asking for any."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def family_of(pid: int) -> list[int]:
    """A process and all that it started, and they started, that still live."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # "PID (NAME) STATE PARENT ...", and a name may hold spaces and brackets.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """`ray start --head` with token authentication, on free ports, in a folder of its own."""
    # Not below pytest's: the name of a socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "token"
        token.write_text(secrets.token_hex(16))
        token.chmod(0o600)
        port, dashboard, client, agent, agent_grpc, metrics = free_ports(6)
        command = [
            *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
            *("--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}/ray"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--metrics-export-port={metrics}",
            *("--min-worker-port=0", "--max-worker-port=0"),
            *("--num-cpus=2", f"--object-store-memory={256 * 2**20}"),
        ]
        environment = {name: v for name, v in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        with (Path(folder) / "log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            found = Head(address=f"http://127.0.0.1:{dashboard}", token=token.read_text())
            for _ in range(600):
                if process.poll() is not None or found.ask("/api/jobs/", found.token) == 200:
                    break
                time.sleep(0.2)
            assert process.poll() is None, (Path(folder) / "log").read_text()
            yield found
        finally:
            for pid in family_of(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def overrides_of(compose_run, tmp_path_factory):
    """The overrides of a tiny run, and where it will lie."""
    root = tmp_path_factory.mktemp("submitted")

    def overrides(name: str, *more: str) -> tuple[list[str], Path]:
        engine = ("engine=torch", "worker.num_workers=1", "run.steps=2")
        return compose_run(root, name, *engine, *more)[1], root / name

    return overrides


@pytest.mark.ray
def test_a_job_trains_and_succeeds(head, overrides_of):
    overrides, run = overrides_of("job")
    done = submit(
        *overrides,
        RAY_API_SERVER_ADDRESS=head.address,
        RAY_AUTH_TOKEN=head.token,
        HSTVG_PYTHON=sys.executable,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"run {run} done at step 2" in done.stdout
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2]
    assert (run / "export" / "model.safetensors").exists()
    assert head.token not in done.stdout + done.stderr


@pytest.mark.ray
def test_a_job_that_fails_says_so(head, overrides_of):
    overrides, run = overrides_of("wrong")
    done = submit(
        *overrides,
        "run.stepz=3",
        RAY_API_SERVER_ADDRESS=head.address,
        RAY_AUTH_TOKEN=head.token,
        HSTVG_PYTHON=sys.executable,
    )
    assert done.returncode == 1
    assert "did you mean run.steps?" in done.stdout + done.stderr
    assert not run.exists()


@pytest.mark.ray
def test_without_the_token_nothing_is_accepted(head, overrides_of):
    overrides, run = overrides_of("stranger")
    done = submit(*overrides, RAY_API_SERVER_ADDRESS=head.address, RAY_AUTH_TOKEN="0" * 32)
    assert done.returncode not in (0, 2)
    assert "token" in (done.stdout + done.stderr).lower()
    assert not run.exists()
    assert head.ask("/api/jobs/", head.token) == 200
    assert head.ask("/api/jobs/", "0" * 32) in (401, 403)
    assert head.ask("/api/jobs/", None) in (401, 403)
