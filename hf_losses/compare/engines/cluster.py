"""Runs as tasks of a Ray cluster, placed where their CPUs and GPUs are free.

If a node dies, Ray makes its runs again on another; a script that fails is not run again. Logs
arrive while a run goes on, results when it ends, so that no shared disk is needed.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import hf_losses
from hf_losses.compare.engines import guard, nodes
from hf_losses.compare.engines.run import MARK, POLL, Ended, Run, RunsRefused
from hf_losses.compare.engines.task import PERIOD, Outcome, Printed, Task, make
from hf_losses.compare.plan import Plan
from hf_losses.files import write_bytes
from hf_losses.messages import MissingExtra, UsageError

RETRIES = 3  # How often a run is repeated after its node died or ran out of memory.
ATTEMPTS = ".attempts"  # Folder of the runs that have not ended, inside the comparison's.
PAUSE = 5.0  # Seconds between attempts to connect.
WAIT = 60.0  # Seconds that nodes get to answer.
SILENCE = 20.0  # Seconds after which a head that does not answer is given up. Ray itself ends the
# process after 60.


class Cluster:
    """The runs of a comparison on a Ray cluster; a context manager that disconnects at its end.

    Args:
        address: Address of the cluster's head, or `auto` for the cluster of this machine.
        cpus: CPUs of every run; by default 1, and with GPUs as many as a node has for each of them.
        gpus: GPUs of every run, also a share of one such as 0.5; by default 1 if there are any.
        jobs: Number of parallel runs; None for as many as there is room for.

    Raises:
        MissingExtra: If Ray is not installed.
        UsageError: If there is no such cluster, or it has no node for such a run.
    """

    def __init__(
        self,
        address: str,
        cpus: int | None = None,
        gpus: float | None = None,
        jobs: int | None = None,
    ) -> None:
        self.address, self.jobs = address, jobs
        self.ray = connect(address)
        alive = [node for node in self.ray.nodes() if node["Alive"]]
        if gpus is None:
            gpus = float(any(amount(node, "GPU") for node in alive))
        self.cpus, self.gpus = cpus or default_cpus(alive, gpus), gpus
        self.nodes = [node for node in alive if self._room(node)]
        if not self.nodes:
            have = "; ".join(
                f"{label(node)} has CPUs: {amount(node, 'CPU'):g}, GPUs: {amount(node, 'GPU'):g}"
                for node in alive
            )
            self.ray.shutdown()
            raise UsageError(
                f"no node has what a run takes (--cpus_per_run {self.cpus}, --gpus_per_run "
                f"{gpus:g}): {have}"
            )
        room = sum(map(self._room, self.nodes))
        self.parallel = min(jobs or room, room)
        self.running: dict[Any, Run] = {}  # By the reference of the task's outcome.
        self.attempts: dict[str, list[str]] = {}  # By the run's name.
        self.mark: Path | None = None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        if self.mark:
            self.mark.unlink(missing_ok=True)
        self.ray.shutdown()

    def prepare(
        self, plan: Plan, folder: Path, *, keep_models: bool, say: Callable[[str], None]
    ) -> None:
        """See `Engine`: checks code and data on every node."""
        self.plan, self.folder, self.say = plan, folder.absolute(), say
        self.mark, text = self.folder / MARK, os.urandom(8).hex()
        write_bytes(self.mark, text.encode())
        words = [*plan.arguments, *(word for loss in plan.losses for word in shlex.split(loss)[1:])]
        values = (word.partition("=")[2] if word.startswith("--") else word for word in words)
        self.needs = nodes.Needs(
            version=hf_losses.__version__,
            directory=os.getcwd(),
            script=plan.script,
            script_hash=nodes.file_hash(plan.script),
            sizes=nodes.local_sizes(values),
            program=os.path.basename(plan.launcher[0]) if plan.launcher else "",
            mark=str(self.mark),
            mark_text=text,
        )
        answers = self._ask_nodes()
        lacking = [f"node {node} {answer}" for node, (answer, _) in answers.items() if answer]
        if lacking:
            raise RunsRefused("; ".join(lacking))
        alone = [node for node, (_, shared) in answers.items() if not shared]
        if keep_models and alone:
            raise RunsRefused(
                f"--keep_models needs a disk that all nodes share; {self.folder} is not there on "
                f"node {', '.join(alone)}"
            )
        disk = "share" if not alone else "do not share"
        say(
            f"Nodes: {len(answers)}, which {disk} the disk. Room for runs at a time: "
            f"{self.parallel} (CPUs of each: {self.cpus}, GPUs: {self.gpus:g})."
        )
        self._set_up()

    def has_room(self) -> bool:
        """See `Engine`; runs for which there is no room yet wait in Ray."""
        return self.jobs is None or len(self.running) < self.jobs

    def start(self, run: Run) -> None:
        """See `Engine`."""
        scratch = str(self.scratch)
        task = Task(str(run.folder), self.plan, run.settings, self.needs, scratch, self.gpus)
        self.running[self.make.remote(task, self.queue)] = run

    def ended(self) -> list[Ended]:
        """See `Engine`; waits for the head of the cluster if it is gone."""
        if not self.running:
            time.sleep(POLL)
            return []
        ready, _ = self.ray.wait([*self.running], num_returns=1, timeout=PERIOD)
        if not self._head_is_gone() and self._write_logs():
            errors = self.ray.exceptions
            # With the head, mostly, which the next call will notice.
            with suppress(errors.LocalRayletDiedError, errors.GetTimeoutError):
                return [self._collect(reference) for reference in ready]
        self._wait_for_head()
        return []

    def stop(self) -> None:
        """See `Engine`."""
        if self.running and self.ray.is_initialized():
            for reference in self.running:
                self.ray.cancel(reference)
            self.ray.wait([*self.running], num_returns=len(self.running), timeout=3 * guard.GRACE)
        self.running.clear()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _room(self, node: Mapping[str, Any]) -> int:
        """How many runs a node can make at a time."""
        rooms = [amount(node, "CPU") / self.cpus]
        if self.gpus:
            # Ray does not divide a GPU's share among two of them.
            share = 1 / self.gpus if self.gpus < 1 else 1
            rooms.append(amount(node, "GPU") * int(share) // max(1, self.gpus))
        return int(min(rooms))

    def _set_up(self) -> None:
        """Makes what the tasks of this connection need."""
        from ray.util.queue import Queue

        self.scratch = self.folder / ATTEMPTS
        shutil.rmtree(self.scratch, ignore_errors=True)  # Of an earlier start that was killed.
        self.queue = Queue(actor_options=self._on(self.ray.get_runtime_context().get_node_id()))
        # A node that died before the queue is there would take its announcements along.
        with suppress(self.ray.exceptions.RayError):  # `_write_logs` would notice, too.
            self.ray.get(self.queue.actor.qsize.remote(), timeout=SILENCE)
        self.make = self.ray.remote(
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_retries=RETRIES,
            retry_exceptions=False,
            scheduling_strategy="SPREAD",
        )(make)
        self.head, self.heard = self.ray.get_runtime_context().gcs_address, time.monotonic()

    def _on(self, node: str) -> dict[str, Any]:
        """Options of a task without CPUs of its own on a certain node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        return {"num_cpus": 0, "scheduling_strategy": strategy}

    def _ask_nodes(self) -> dict[str, tuple[str, bool]]:
        """What each node lacks, and whether it sees the comparison's folder, by the node's name."""
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(nodes)
        try:
            check = self.ray.remote(nodes.check_node)
            asked = {
                check.options(**self._on(node["NodeID"]), max_retries=0).remote(self.needs): node
                for node in self.nodes
            }
        finally:
            cloudpickle.unregister_pickle_by_value(nodes)
        answered, silent = self.ray.wait([*asked], num_returns=len(asked), timeout=WAIT)
        if silent:
            names = ", ".join(label(asked[reference]) for reference in silent)
            raise RunsRefused(f"node {names} did not answer within {WAIT:.0f} seconds")
        answers, errors = {}, self.ray.exceptions
        for reference in answered:
            # A node that has just died may still be listed; its runs go to others.
            with suppress(errors.TaskUnschedulableError, errors.NodeDiedError):
                answers[label(asked[reference])] = self.ray.get(reference)
        if not answers:
            raise RunsRefused(f"no node of the cluster at {self.address} is left")
        return answers

    def _write_logs(self) -> bool:
        """Adds to the logs what the runs have printed since the last call.

        Returns:
            Whether the queue on this node has answered. It does not if a head that was killed has
            been started again before it was missed, and knows nothing of what was.
        """
        try:  # Not by the queue's own methods, which would wait for ever.
            actor = self.queue.actor
            count = self.ray.get(actor.qsize.remote(), timeout=SILENCE)
            batch = actor.get_nowait_batch.remote(count)
            messages: list[Printed] = self.ray.get(batch, timeout=SILENCE)
        except self.ray.exceptions.RayError:
            return False
        going_on = {str(run.folder): (run, task) for task, run in self.running.items()}
        for message in messages:
            if message.name not in going_on:  # It has ended, and has its whole log.
                continue
            run, reference = going_on[message.name]
            attempts = self.attempts.setdefault(message.name, [])
            if message.attempt not in attempts:
                attempts.append(message.attempt)
                run.folder.parent.mkdir(parents=True, exist_ok=True)
                run.beside("log").write_bytes(b"")
                if len(attempts) > RETRIES + 1:  # Ray goes on for ever with one out of memory.
                    self.ray.cancel(reference)
                elif len(attempts) > 1:
                    settings = run.settings
                    self.say(
                        f"{settings.loss}, seed {settings.seed}: begins again on node "
                        f"{message.node}, since its node died or was out of memory"
                    )
            if message.attempt == attempts[-1]:
                with open(run.beside("log"), "ab") as log:
                    log.write(message.text)
        return True

    def _collect(self, reference: Any) -> Ended:
        """Puts the files of a run into its folder."""
        errors, reason = self.ray.exceptions, ""
        try:
            outcome: Outcome = self.ray.get(reference, timeout=WAIT)
        except (
            errors.NodeDiedError,
            errors.WorkerCrashedError,
            errors.OutOfMemoryError,
            errors.TaskCancelledError,
        ) as error:
            reason = f"lost {RETRIES + 1} times: {str(error).splitlines()[0]}"
        run = self.running.pop(reference)
        self.attempts.pop(str(run.folder), None)
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(run.folder, ignore_errors=True)
        if reason:
            return Ended(run, None, 0.0, reason)
        if outcome.lacking:
            raise UsageError(outcome.lacking)
        write_bytes(run.beside("log"), outcome.log)
        if outcome.left_out:
            self.say(f"too large to return: {', '.join(outcome.left_out)} of {run.folder}")
        if outcome.folder:
            move(outcome.folder, run.folder)
        for path, content in outcome.files.items():
            (run.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (run.folder / path).write_bytes(content)
        return Ended(run, outcome.code, outcome.seconds)

    def _head_is_gone(self) -> bool:
        """Whether the head has not answered for a while."""
        with suppress(OSError):
            reach(self.head)
            self.heard = time.monotonic()
        return time.monotonic() - self.heard > SILENCE

    def _wait_for_head(self) -> None:
        """Connects to the head when it has been started again, and starts all runs again."""
        self.say(f"the head of the cluster at {self.address} does not answer; waiting for it")
        self.ray.shutdown()
        while True:
            time.sleep(PAUSE)  # Also before the first time: the head may be about to end.
            with suppress(UsageError):
                self.ray = connect(self.address)
                break
        self._set_up()
        runs = [*self.running.values()]
        self.running.clear()
        self.attempts.clear()
        self.say(f"the head is back; {len(runs)} runs start again")
        for run in runs:
            self.start(run)


def connect(address: str) -> Any:
    """Connects to a cluster.

    Args:
        address: Address of the head, or `auto`.

    Returns:
        The module `ray`.

    Raises:
        MissingExtra: If Ray is not installed.
        UsageError: If there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("--cluster needs Ray: pip install 'hf-losses[cluster]'") from error
    if address.startswith("ray://"):
        raise UsageError(
            f"--cluster {address} is for Ray's client: start hf-losses on a machine of the "
            "cluster, for instance by ray job submit, with --cluster auto"
        )
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Else Ray < 2.60 warns.
    handler = signal.getsignal(signal.SIGTERM)  # Ray sets its own.
    try:
        if address != "auto":  # Ray would try for minutes.
            reach(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"there is no Ray cluster at {address} ({error}): start one by ray start --head, or "
            "give --cluster the address of its head"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)
    return ray


def reach(address: str) -> None:
    """Raises an OSError if nothing listens at `HOST:PORT`, a ValueError if it is no address."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=2).close()


def move(source: str, target: Path) -> None:
    """Moves a folder that a network disk may show late."""
    deadline = time.monotonic() + WAIT
    while True:
        try:
            return os.replace(source, target)
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise
            time.sleep(PERIOD)


def label(node: Mapping[str, Any]) -> str:
    """Address of a node, and the start of its number, since two may have the same address."""
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def amount(node: Mapping[str, Any], resource: str) -> float:
    """How many CPUs or GPUs a node has."""
    return float(node["Resources"].get(resource, 0))


def default_cpus(alive: Iterable[Mapping[str, Any]], gpus: float) -> int:
    """The CPUs of a run: 1, or those that a node has for each of its GPUs.

    Args:
        alive: The nodes.
        gpus: GPUs of a run.
    """
    shares = [
        amount(node, "CPU") * gpus / amount(node, "GPU") for node in alive if amount(node, "GPU")
    ]
    return max(1, int(min(shares, default=1))) if gpus else 1
