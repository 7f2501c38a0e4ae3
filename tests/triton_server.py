"""A real Triton server on the loopback address, installed by ``scripts/triton``, and a faulty proxy."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.request
from contextlib import closing, suppress
from pathlib import Path
from typing import Self

INSTALLED = Path(__file__).parents[1] / ".triton"
_BACKEND = Path(__file__).with_name("triton_backend.py")


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return int(listening.getsockname()[1])


class TritonServer:
    """A tritonserver process that serves a model repository.

    Args:
        folder: an empty folder, for the backends and the log.
        repository: the model repository.
        ports: ports of HTTP and gRPC; None takes two free ones.
    """

    def __init__(self, folder: Path, repository: Path, ports: tuple[int, int] | None = None) -> None:
        self.folder, self.repository = folder, repository
        self.http_port, self.grpc_port = ports or (free_port(), free_port())
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        server = INSTALLED / "server" / "pytriton" / "tritonserver"
        python = folder / "backends" / "python"
        shutil.copytree(server / "backends" / "python", python)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", python)
        self._own = folder / "backends" / "onnxruntime"
        self._own.mkdir()
        shutil.copy(_BACKEND, self._own / "model.py")
        self._binary = server / "bin" / "tritonserver"

    def start(self) -> None:
        libraries = [INSTALLED / "server" / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._binary, "--model-repository", self.repository),
                    *("--backend-directory", self.folder / "backends"),
                    *("--http-address", "127.0.0.1", "--http-port", str(self.http_port)),
                    *("--grpc-address", "127.0.0.1", "--grpc-port", str(self.grpc_port)),
                    *("--allow-metrics", "false", "--exit-on-error", "false", "--exit-timeout-secs", "1"),
                ],
                env={
                    **os.environ,
                    "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
                    # Triton's bridge to Python uses the packages of the first python3 in PATH, whatever
                    # PYTHONPATH says.
                    "PATH": f"{INSTALLED / 'python' / 'bin'}:{os.environ['PATH']}",
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(600):
            with suppress(OSError):
                # Wait until it is ready, not just alive: on a busy machine, loading can take long.
                url = f"http://127.0.0.1:{self.http_port}/v2/health/ready"
                with urllib.request.urlopen(url, timeout=5):
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"tritonserver does not start: {self.log()[-2000:]}")

    def kill(self) -> None:
        """End the server and its processes without warning, as if its machine had failed."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None

    def slow(self, seconds: float) -> None:
        """Make each call of a model take this much longer."""
        (self._own / "slow").write_text(str(seconds), "ascii")

    def calls(self, model: str) -> list[int]:
        """The number of requests in each call of a model so far, including warm-up."""
        return [int(line) for line in (self._own / f"calls-{model}").read_text("ascii").split()]

    def log(self) -> str:
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def address(self, protocol: str, model: str) -> str:
        port = self.grpc_port if protocol == "grpc" else self.http_port
        return f"{protocol}://127.0.0.1:{port}/{model}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


class Proxy:
    """Forwards connections to a port of this machine, except those that it drops or holds.

    Args:
        port: the port to forward to.
        drop: this many connections are closed as soon as they are made.
    """

    def __init__(self, port: int, drop: int = 0) -> None:
        self._target, self._drop = port, drop
        self.dropped = 0
        self._held = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        """Stop forwarding without closing anything, like a server that hangs."""
        self._held.set()

    def cut(self, more: int) -> None:
        """Cut the open connections, and drop the next ``more`` ones."""
        self._drop = self.dropped + more
        for item in self._sockets:
            with suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.close()
        self.cut(0)
        for item in self._sockets:
            item.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                if self.dropped < self._drop:
                    self.dropped += 1
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=(source, target), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                while self._held.is_set():
                    time.sleep(0.05)
                target.sendall(data)
        for item in (source, target):
            with suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)


def publish(repository: Path, engine: Path, batch: tuple[int, int, int] = (1, 4, 8)) -> Path:
    """Copy an engine file into a model repository, as ``vfx-export --triton`` does with its own."""
    from vfx_engines import read_spec
    from vfx_export.triton_config import Serving
    from vfx_export.triton_repository import new_version

    spec = read_spec(engine)
    with new_version(repository, spec.model) as version:
        shutil.copy(engine, version.file("onnx"))
        return version.publish(spec, Serving(repository, (batch,)))
