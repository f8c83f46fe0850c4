"""Joint pre-training: the task of a run whose parts take turns, each as the pre-training of its own recipe."""

from collections.abc import Sequence
from functools import partial

from data2vec.distributed import Process
from data2vec.health.verdict import Verdict, combine_verdicts
from data2vec.objective.joint import JointObjective
from data2vec.objective.latent import LatentObjective
from data2vec.objective.part_schedule import PartSchedule
from data2vec.recipe.joint import JointRecipe, errors_of_part, with_keys_of_part
from data2vec.run_dir import Run, metrics_of_part, part_run, write_part_runs
from data2vec.settings import JsonDict, JsonMapping
from data2vec.train.joint.loader import JointLoader
from data2vec.train.pretrain import PretrainTask


class JointTask:
    """The parts of a joint run. A step is made, logged and evaluated as one of its part; intervals count the part's steps."""

    def __init__(self, recipe: JointRecipe, process: Process, resume: bool = False):
        self.recipe, self.process = recipe, process
        self.schedule = PartSchedule(recipe.shares, recipe.train.steps, recipe.train.seed)
        self.parts: dict[str, PretrainTask] = {}
        for name, part_recipe in recipe.parts.items():
            with errors_of_part(name):
                self.parts[name] = PretrainTask(part_recipe, process, resume)
        self.state: JsonDict = {}
        objectives = {name: part.objective for name, part in self.parts.items()}
        latent = {name: each for name, each in objectives.items() if isinstance(each, LatentObjective)}
        self.objective = JointObjective(
            latent,
            self.schedule,
            {name: part.train.lr / recipe.train.lr for name, part in recipe.parts.items()},
            {name: recipe.loss_weight(name) for name in recipe.parts},
        )
        self.loader = JointLoader({name: part.loader for name, part in self.parts.items()}, self.schedule)
        for name, part in self.parts.items():
            part.called, part.shared_with = self.objective, [other for other in self.parts if other != name]
        self.init_message = None
        self.early_stop = None

    def part_of(self, step: int) -> str:
        """The part that makes step number `step`, counted from 1."""
        return self.schedule.part(step)

    def place(self, step: int) -> tuple[int, bool]:
        """Which step of its part step number `step` is, counted from 1, and whether it is the part's last one."""
        number = self.schedule.number(step)
        return number, number == self.schedule.count(self.schedule.part(step))

    def evaluate(self, step: int, run: Run) -> JsonDict:
        """Probe and held-out loss of the part that has made this step."""
        return self.parts[self.part_of(step)].evaluate(step, run)

    def has_collapsed(self, metrics: JsonDict) -> bool:
        """Whether the part that has made this step has collapsed."""
        return self.parts[self.part_of(metrics["step"])].has_collapsed(metrics)

    def verdict(self, metrics: Sequence[JsonMapping]) -> Verdict:
        """The health of each part, as one verdict."""
        verdicts = {name: part.verdict(metrics_of_part(metrics, name)) for name, part in self.parts.items()}
        return combine_verdicts({name: each.reworded(partial(with_keys_of_part, name)) for name, each in verdicts.items()})

    def save_model(self, run: Run) -> None:
        """Write the model of each part into its run folder."""
        self.process.on_main_process(lambda: write_part_runs(run, self.recipe))
        for name, part in self.parts.items():
            part.save_model(part_run(run, name))
