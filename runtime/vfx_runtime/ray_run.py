"""Run one list of videos on a Ray cluster: Ray Data hands chunks of it to a pool of actors.

Each actor is the run of one process, so its files are those of a run without Ray. Videos that failed, and
those of a chunk whose actor died, are tried once more, each by itself; those that the actor had finished are
found finished. A video that fails again, or ends a second actor, is a failure of the run.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vfx_engines.devices import available_cores
from vfx_engines.errors import EngineError, UsageError, VideoError, reason, shown
from vfx_engines.triton.address import is_address
from vfx_runtime.claims import Claims
from vfx_runtime.delivering import Extracted
from vfx_runtime.job import Job
from vfx_runtime.pipeline import Stats
from vfx_runtime.ray_actor import Actor, Answer
from vfx_runtime.running import Listener, Task
from vfx_runtime.writers import pack_all

LOCAL = "local"
"""The address that stands for a Ray that this run starts for itself."""

_CHUNK = 64
_CHUNKS_PER_ACTOR = 8
_CORES_PER_ACTOR = 4
_SPARE_RESTARTS = 20
_STORE_BYTES = 128 << 20
"""Size of Ray's object store. Only jobs and results pass through it."""
_SECONDS_TO_ANSWER = 10.0

_ALONE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray understands this as "no cluster on this system", and binds its ports to the loopback address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}


@dataclass(frozen=True, slots=True)
class Pool:
    """The number of actors of a run, and the resources of each."""

    actors: int
    cpus: float
    """CPUs per actor."""
    gpus: int
    """GPUs per actor: 0 or 1."""


def check_address(address: str) -> None:
    """Refuse anything but the address of a Ray cluster.

    Raises:
        UsageError: the text is not an address. It may be an input, since ``--ray`` takes the word after it.
    """
    if address not in (LOCAL, "auto") and not re.fullmatch(r"(ray://)?[\w.\[\]:-]+:[0-9]{1,5}", address):
        raise UsageError(
            f"--ray {shown(address)}: expected HOST:PORT, ray://HOST:PORT, auto, or nothing; for a Ray of "
            "its own write --ray=local, or --ray before another option"
        )


def run_on_ray(
    task: Task,
    device: str | None,
    jobs: Sequence[Job],
    listener: Listener,
    *,
    address: str = LOCAL,
    actors: int | None = None,
) -> Generator[Extracted, None, None]:
    """Run jobs on a cluster. Results come as chunks finish.

    Args:
        task: what to do with each video. Its paths, and those of the videos, must be the same on every
            machine.
        device: ``cpu``, ``cuda``, or None for the engine file's default.
        jobs: all jobs of the run.
        listener: told about progress.
        address: address of a running cluster; `LOCAL` starts a Ray for this run and stops it afterwards.
        actors: number of actors; None for one per GPU, or one per four cores.

    Raises:
        UsageError: Ray is not installed, there is no cluster at the address, or it has too few GPUs.
        EngineError: an actor cannot open the engine, or Ray gave up.
    """
    on_gpu = (device or "").startswith("cuda") or (device is None and task.engines[0].suffix == ".plan")
    task = replace(
        task,
        engines=tuple(item if is_address(item) else item.absolute() for item in task.engines),
        output=task.output.absolute(),
        pack=False,
    )
    stats = Stats()
    listener.stats(stats)
    with _ray(address) as ray:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        pool = _pool(machines, task.threads, actors, len(jobs), on_gpu)
        each = f"{pool.cpus:g} CPU{'s' * (pool.cpus != 1)}" + (" and a GPU" if pool.gpus else "")
        count = f"{pool.actors} actor{'s' * (pool.actors != 1)}"
        listener.said(f"Ray {ray.__version__}: {count}, each with {each}")
        cores = max(1, math.floor(pool.cpus))
        # For a served engine, threads are the server's business.
        threads = None if any(map(is_address, task.engines)) else cores
        task = replace(task, threads=task.threads or threads, workers=task.workers or cores)
        size = max(1, min(_CHUNK, math.ceil(len(jobs) / (pool.actors * _CHUNKS_PER_ACTOR))))
        chunks = [list(jobs[start : start + size]) for start in range(0, len(jobs), size)]
        left = {job.name: job for job in jobs}
        again: dict[str, Extracted] = {}
        said: set[str] = set()
        for calls in (2, 1):
            for answer in _answers(ray, task, device, chunks, len(jobs), pool, calls):
                if answer.fatal is not None:
                    raise answer.fatal
                for line in answer.lines:
                    if line not in said:
                        said.add(line)
                        listener.said(line)
                stats.windows += answer.stats.windows
                stats.frames += answer.stats.frames
                stats.frames_on_gpu += answer.stats.frames_on_gpu
                for result in answer.results:
                    if result.error is not None and calls > 1:
                        again[result.name] = result
                    elif left.pop(result.name, None) is not None:
                        stats.videos += not result.skipped
                        yield result
            if not left:
                break
            if calls > 1:
                lost = len(left) - len(again)
                why = f"{len(again)} failed" + (f", {lost} were with an actor that ended" if lost else "")
                listener.said(f"tried once more: {len(left)} videos ({why})")
                # One video at a time, so that one that ends its actor takes no other video with it.
                chunks = [[job] for job in left.values()]
        for job in left.values():
            stats.videos += 1
            yield Extracted.of(job, error=_given_up(job, again.get(job.name)))
    # The actors were killed, so none of them removed the claims file: opening and closing claims here does.
    with Claims(task.output) as claims:
        listener.packed(pack_all(task.format, task.output, claims))


def _given_up(job: Job, failed: Extracted | None) -> VideoError:
    """Why a video has no result: its actors ended, or one did after it had failed with another."""
    why = "two actors ended while they had it"
    if failed is not None:
        why = f"an actor ended while it had it, and before, it failed ({reason(str(failed.error))})"
    return VideoError(f"{shown(job.where)}: given up: {why}; run it alone to see why")


def _answers(
    ray: Any,
    task: Task,
    device: str | None,
    chunks: Sequence[list[Job]],
    total: int,
    pool: Pool,
    calls: int,
) -> Iterator[Answer]:
    """The answer to each chunk, except chunks whose actor died."""
    rows = [{"jobs": pickle.dumps(chunk)} for chunk in chunks]
    actors = min(pool.actors, len(rows))
    with warnings.catch_warnings():
        # Deprecated since Ray 2.60 without a successor. Our optional dependency's upper bound keeps to
        # versions that still have it.
        warnings.filterwarnings("ignore", "`ray_remote_args_fn` is deprecated")
        found = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Actor,
            batch_size=None,
            batch_format="numpy",
            fn_constructor_args=(task, device, total),
            compute=ray.data.ActorPoolStrategy(
                size=actors,
                max_tasks_in_flight_per_actor=calls,
                max_concurrent_calls_per_actor=calls,
                enable_true_multi_threading=True,
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
            ray_remote_args_fn=partial(_restarts, len(rows)),
        )
    try:
        for batch in found.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            for answer in batch["answer"]:
                yield pickle.loads(bytes(answer))
    except ray.exceptions.RayError as error:
        # For example if an actor cannot import vfx. The last line of Ray's message says why.
        raise EngineError(
            f"Ray gave up ({reason(error, -1)}): is vfx installed on all its machines, in one version, and "
            "does the engine open there without --ray?"
        ) from None


def _restarts(chunks: int) -> dict[str, Any]:
    # An actor that ends takes a chunk with it, unless it ends whenever it opens the engine: without a limit,
    # the run would then wait for ever. We try a chunk again ourselves, since Ray would do so for ever, too.
    return {"max_restarts": chunks + _SPARE_RESTARTS, "max_task_retries": 0}


def _pool(
    machines: Sequence[Mapping[str, float]],
    threads: int | None,
    actors: int | None,
    videos: int,
    on_gpu: bool,
) -> Pool:
    """Decide how many actors there are, and what each gets.

    Args:
        machines: the resources of each machine of the cluster.
        threads: the most cores for an actor; None leaves it to the number of actors.
        actors: the number of actors; None for one per GPU, or one per four cores.
        videos: number of videos of the run.
        on_gpu: whether each actor needs a GPU.

    Raises:
        UsageError: the actors need GPUs, and the cluster has fewer than that.
    """
    # In thousandths, so that shares add up to exactly what there is. If they added up to slightly more, or if
    # an actor were larger than any machine, Ray would wait for ever.
    cpus = [int(machine.get("CPU", 0) * 1000) for machine in machines]
    gpus = [int(machine.get("GPU", 0)) for machine in machines]
    if on_gpu and not 1 <= (actors or 1) <= sum(gpus):
        raise UsageError(
            f"--ray: {actors or 1} actors on GPUs, and the cluster has {sum(gpus)}: use --device cpu, or "
            "fewer actors"
        )
    if on_gpu:
        number = actors or sum(gpus)
    else:
        least = (threads or _CORES_PER_ACTOR) * 1000
        # If all machines are smaller than that, each of them is one actor.
        number = actors or sum(cpu // least for cpu in cpus) or sum(cpu >= 1000 for cpu in cpus)
    number = max(1, min(number, videos))

    def room(share: int) -> int:
        """The number of such actors that the machines have room for."""
        most = [cpu // share if share else number for cpu in cpus]
        return sum(map(min, most, gpus) if on_gpu else most)

    shares = {cpu // count for cpu in {*cpus} for count in range(1, number + 1)} | {0}
    shares = {share if threads is None else min(share, threads * 1000) for share in shares}
    shares = {share // 1000 * 1000 if share >= 1000 else share for share in shares}
    share = next(share for share in sorted(shares, reverse=True) if room(share) >= number)
    return Pool(number, share / 1000, int(on_gpu))


@contextmanager
def _ray(address: str) -> Iterator[Any]:
    """The ``ray`` module, connected. A Ray started here is stopped afterwards, and its files are removed.

    Raises:
        UsageError: Ray is not installed, or nothing answers at the address.
    """
    with ExitStack() as stack:
        if address == LOCAL:
            stack.enter_context(_environment({**_ALONE, "RAY_AUTH_TOKEN": secrets.token_hex(32)}))
        try:
            import ray
            import ray.data
        except ImportError:
            raise UsageError("--ray needs Ray, which is not installed: pip install 'ray[data]'") from None
        if address not in (LOCAL, "auto"):
            _check_answers(address, ray.util.get_node_ip_address)
        quiet: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.CRITICAL,
            "configure_logging": True,
        }
        before = signal.getsignal(signal.SIGTERM)
        try:
            if address == LOCAL:
                # The path must be short, since socket paths have at most 107 characters.
                folder = tempfile.mkdtemp(prefix="vfx-ray-", dir="/tmp")
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                stack.callback(ray.shutdown)
                ray.init(
                    address="local",
                    num_cpus=available_cores(),
                    include_dashboard=False,
                    object_store_memory=_STORE_BYTES,
                    _temp_dir=folder,
                    **quiet,
                )
            else:
                stack.callback(ray.shutdown)
                ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            # Ray mentions tokens only in its log, and does not send its own to an address unless told to.
            token = (
                "" if address == LOCAL else "; one that was started with a token takes RAY_AUTH_MODE=token"
            )
            raise UsageError(
                f"--ray {shown(address)}: no Ray cluster there: {reason(error)}{token}"
            ) from None
        finally:
            # Ray installs its own SIGTERM handler.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.max_errored_blocks = -1
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield ray


def _check_answers(address: str, own: Callable[[], str]) -> None:
    """Check that something listens at an address. Ray by itself would try for 13 minutes.

    Args:
        address: ``HOST:PORT``, or ``ray://`` and that.
        own: gives this machine's address in its network, which Ray takes in place of the loopback address.

    Raises:
        UsageError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    hosts = [host.strip("[]")]
    if hosts[0] in ("localhost", "127.0.0.1", "::1"):
        hosts.append(own())
    said = ""
    for name in hosts:
        try:
            socket.create_connection((name, int(port)), _SECONDS_TO_ANSWER).close()
        except (OSError, OverflowError, UnicodeError) as error:
            said = said or reason(getattr(error, "strerror", None) or error)
        else:
            return
    raise UsageError(
        f"--ray {shown(address)}: no Ray cluster there: {said}: correct the address, start a cluster with "
        "ray start --head, or write --ray=local for a Ray of this run"
    )


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
