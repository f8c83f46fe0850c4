"""Running the jobs of a plan, one after another in this process, or in several worker processes.

Every finished job leaves `outcome.json` in its folder; an interrupted one resumes from its checkpoint.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import torch

from data2vec.atomic_io import write_json
from data2vec.comparison.check_sets import check_sets
from data2vec.comparison.evaluations import evaluate
from data2vec.comparison.plan import TRIVIAL, EvaluationTask, Job, Outcome, Outcomes, Plan, folder_name
from data2vec.comparison.settings import ComparisonSettings
from data2vec.comparison.trivial import evaluated_modality, trivial_baselines
from data2vec.console.quantities import format_duration
from data2vec.errors import Interrupted, Unhealthy, UserError
from data2vec.recipe.loading import validate_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.settings import JsonDict
from data2vec.train.pretrain import pretrain


def execute(job: Job, settings: ComparisonSettings, out: Path) -> Outcome:
    """Run a job, and write its outcome. A failure is part of the outcome; an interruption is raised."""
    folder = out / job.folder
    recipe = None if job.recipe is None else validate_recipe(job.recipe, job.folder, trusted=True)
    failed, collapsed, curve, seconds = None, False, list[tuple[int, float]](), 0.0
    model = out / job.model / "run" if job.model is not None else None
    if job.train:
        assert recipe is not None
        model = folder / "run"
        try:
            run = pretrain(recipe, out=model, resume=(model / "recipe.yaml").is_file())
            lines = run.metrics
            curve = [(line["step"], line["probe_linear"]) for line in lines if "probe_linear" in line]
            seconds = lines[-1]["seconds"]
        except Interrupted:
            raise
        except Exception as error:
            failed, collapsed = _reason(error), isinstance(error, Unhealthy)
    evaluations: dict[str, JsonDict] = {}
    if job.arm == TRIVIAL:
        try:
            evaluation = settings.evaluations[job.evaluations[0].name]
            found = trivial_baselines(evaluation, evaluated_modality(settings, evaluation), job.seed)
            evaluations = {name: asdict(scores) for name, scores in found.items()}
        except Exception as error:
            failed = _reason(error)
    elif failed is None:
        own = None if model is not None else recipe
        evaluations = {task.name: _evaluate(task, job.seed, settings, model, own, folder) for task in job.evaluations}
    outcome = Outcome(job.to_json(), failed, collapsed, seconds, curve, evaluations)
    write_outcome(outcome, folder)
    return outcome


def _evaluate(
    task: EvaluationTask, seed: int, settings: ComparisonSettings, model: Path | None, recipe: Recipe | None, folder: Path
) -> JsonDict:
    """The scores of an evaluation, or why it failed."""
    evaluation, target = settings.evaluations[task.name], folder / folder_name(task.name)
    try:
        return asdict(evaluate(evaluation, model, recipe, seed, target, task.settings, task.extra_flops))
    except Interrupted:
        raise
    except Exception as error:
        return {"failed": _reason(error)}


def write_outcome(outcome: Outcome, folder: Path) -> None:
    """Write outcome.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "outcome.json", asdict(outcome))


def read_outcome(job: Job, out: Path) -> Outcome | None:
    """What became of a job, or None. Raises UserError if the folder has the outcome of other settings."""
    path = out / job.folder / "outcome.json"
    if not path.exists():
        return None
    raw = json.loads(path.read_text(encoding="utf-8"))
    outcome = Outcome(**raw | {"curve": [tuple(point) for point in raw["curve"]]})
    if outcome.job != job.to_json():
        keys = ", ".join(key for key, value in job.to_json().items() if outcome.job.get(key) != value)
        raise UserError(f"--out {out}: {job.folder} was made with other settings ({keys}); use another --out, or remove it")
    return outcome


def read_outcomes(plan: Plan, only: Sequence[str] = ()) -> dict[str, Outcome]:
    """The outcomes of all jobs that have one; `only` leaves out the costs of arms that are neither in it nor started."""
    outcomes: dict[str, Outcome] = {}
    while True:
        before = len(outcomes)
        for job in list(plan.jobs(outcomes, plan.started(only))):
            if job.folder not in outcomes and (outcome := read_outcome(job, plan.out)) is not None:
                outcomes[job.folder] = outcome
        if len(outcomes) == before:
            return outcomes


def run_plan(
    plan: Plan, only: Sequence[str] = (), say: Callable[[str, Outcomes], None] = lambda line, outcomes: None
) -> dict[str, Outcome]:
    """Run all jobs that are not done; returns the outcomes of all. `say` gets a line and all outcomes after each job.

    Raises KeyboardInterrupt or Interrupted after the running jobs saved a checkpoint: the same call resumes them."""
    outcomes = {folder: each for folder, each in read_outcomes(plan, only).items() if not each.must_repeat}
    own = [job for job in plan.jobs(outcomes, only) if job.folder in outcomes]
    progress = _Progress(plan.job_count(only), len(own))

    def ready() -> list[Job]:
        jobs = [job for job in plan.jobs(outcomes, only) if job.folder not in outcomes]
        for job in jobs:
            read_outcome(job, plan.out)  # which raises, instead of one of other settings that is replaced
        return jobs

    if ready():
        check_sets(plan.settings, plan.selected(only))
    if plan.processes == 1:
        while jobs := ready():
            with _log(plan.out / jobs[0].folder):
                outcome = execute(jobs[0], plan.settings, plan.out)
            outcomes[jobs[0].folder] = outcome
            say(progress.line(outcome), outcomes)
    else:
        for outcome in _run_parallel(plan, ready):
            outcomes[outcome.job["folder"]] = outcome
            say(progress.line(outcome), outcomes)
    return outcomes


class _Progress:
    def __init__(self, total: int, done: int):
        self.total, self.before, self.count, self.failed = total, done, done, 0
        self.start = time.monotonic()

    def line(self, outcome: Outcome) -> str:
        """What to say after this job."""
        self.count += 1
        reasons = [outcome.failed, *(scores.get("failed") for scores in outcome.evaluations.values())]
        reason = next((each for each in reasons if each is not None), None)
        self.failed += reason is not None
        rate = (time.monotonic() - self.start) / (self.count - self.before)
        left = f"about {format_duration(rate * max(0, self.total - self.count))} left"
        what = outcome.job["folder"] + (f" failed: {reason}" if reason is not None else "")
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.count}/{self.total} jobs done{failed}, {left}; {what}"


def _reason(error: Exception) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text if isinstance(error, UserError | Unhealthy) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def _log(folder: Path) -> Iterator[None]:
    """Write what is printed to log.txt in the job's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    log = (folder / "log.txt").open("a", encoding="utf-8")
    with log as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        yield


# --- worker processes


def _run_parallel(plan: Plan, ready: Callable[[], list[Job]]) -> Iterator[Outcome]:
    workers = [_Worker(plan) for _ in range(plan.processes)]
    free, running = list(workers), dict[Future[Outcome], tuple[_Worker, Job]]()
    with _terminate_as_interrupt(), ThreadPoolExecutor(plan.processes) as pool:
        try:
            while True:
                busy = {job.folder for _, job in running.values()}
                waiting = [job for job in ready() if job.folder not in busy]
                while free and waiting:
                    worker, job = free.pop(), waiting.pop(0)
                    running[pool.submit(worker.run, job)] = worker, job
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    worker, _ = running.pop(future)
                    free.append(worker)
                    yield future.result()
        finally:
            for worker in workers:
                worker.stop()
            pool.shutdown()
            for worker in workers:
                worker.close()


class _Worker:
    """A process that runs jobs. Closing its input stops it: a running job saves a checkpoint first."""

    def __init__(self, plan: Plan):
        self.plan, self.stopping = plan, False
        threads = str(max(1, torch.get_num_threads() // plan.processes))
        self.environment = os.environ | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
        self.environment["LOCAL_WORLD_SIZE"] = str(plan.processes)  # its part of the cores and the memory
        self.process: subprocess.Popen[str] | None = None

    def run(self, job: Job) -> Outcome:
        """Run a job. A process that dies makes it fail."""
        if self.process is None:
            command = [sys.executable, "-m", "data2vec.comparison.run", str(self.plan.out)]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment, start_new_session=True
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(job.to_json()) + "\n")
            self.process.stdin.flush()
        if self.process.stdout.readline() and (outcome := read_outcome(job, self.plan.out)) is not None:
            return outcome
        self.process.stdout.close()
        status, self.process = self._close(self.process), None
        reason = f"its process ended with status {status}; see {job.folder}/log.txt"
        outcome = Outcome(job.to_json(), reason, False, 0.0, [], {})
        if not self.stopping:
            write_outcome(outcome, self.plan.out / job.folder)
        return outcome

    def stop(self) -> None:
        """End the process, after a checkpoint if a job runs."""
        self.stopping = True
        if self.process is not None:
            self._close(self.process)

    def close(self) -> None:
        """Release the pipe of answers, once no thread reads from it."""
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()

    def _close(self, process: "subprocess.Popen[str]") -> int:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        return process.wait()


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM stops the workers, as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, "interrupted; the same command resumes")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _serve(out: Path) -> None:
    """Run the jobs that come in on stdin, a JSON object a line, and answer each with a line on stdout."""
    commands, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    # A thread waits in a read of the commands all the time. Loader workers, which are forked, close sys.stdin: were it the
    # same file, they would wait for its lock forever.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    settings = ComparisonSettings.model_validate_json((out / "comparison.json").read_text(encoding="utf-8"))
    busy, jobs = threading.Event(), list[str]()
    arrived = threading.Semaphore(0)

    def listen() -> None:
        for line in commands:
            jobs.append(line)
            arrived.release()
        jobs.append("")
        arrived.release()
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=listen, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt, Interrupted):
        while True:
            arrived.acquire()
            if not (line := jobs.pop(0)):
                return
            raw = json.loads(line)
            job = Job(**raw | {"evaluations": tuple(EvaluationTask(**each) for each in raw["evaluations"])})
            log = out / job.folder / "log.txt"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            busy.set()
            execute(job, settings, out)
            busy.clear()
            print(json.dumps({"done": job.folder}), file=answers, flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
