"""Stage `views`: evaluates a classifier on several views of each held-out video."""

from typing import Any

from vmae_lab.evaluation.classification import prediction_table, score_intervals, scores
from vmae_lab.evaluation.multi_view import ViewSettings, view_probabilities
from vmae_lab.lab.config import Recipe
from vmae_lab.lab.stages.cost import Work
from vmae_lab.lab.stages.finetune import SupervisedStage
from vmae_lab.lab.stages.inputs import EvaluatedStage, inference
from vmae_lab.lab.stages.stage import HELD_OUT, PREDICTIONS, Job, Stage, build
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.utils.atomic_io import atomic_write
from vmae_lab.utils.processes import process_state


class ViewsStage(EvaluatedStage):
    """Scores of the averaged views, with bootstrap intervals. The predictions of each video are written to a table."""

    kind = "views"
    version = 2  # since version 2, dense windows are at the positions of the official test protocol
    reads = (HELD_OUT,)

    seed: int
    views: ViewSettings

    def run(self, job: Job) -> dict[str, Any]:
        source, folder = self.inputs[0], job.inputs[0]
        if isinstance(source, SupervisedStage):
            classifier = source.load(folder)
        else:
            classifier = VideoClassifier.from_pretrained(folder).to(process_state().device)
        held_out, counts = self.held_out_clips(job.compute)
        how = inference(job.compute)
        probabilities = view_probabilities(classifier, held_out, self.model, self.data.stride, self.views, how)
        names = [held_out.name(row) for row in range(len(held_out))]
        if process_state().is_main_process:
            with atomic_write(job.folder / PREDICTIONS) as temporary:
                table = prediction_table(probabilities, held_out.labels, names, self.data.class_names)
                table.to_parquet(temporary, index=False)
        metrics = {f"views_{name}": value for name, value in scores(probabilities, held_out.labels).items()}
        intervals = score_intervals(probabilities, held_out.labels, self.data.seed)
        return {"metrics": metrics, "intervals": {f"views_{name}": pair for name, pair in intervals.items()}, **counts}

    @property
    def work(self) -> Work:
        views = self.held_out_count * self.views.clips * self.views.crops
        return Work(prediction=self.clip_macs * views, reading_s=self.reading_s)


def views_stage(recipe: Recipe, classifier: Stage, seed: int) -> Stage:
    """Build a stage that evaluates a classifier on several views of each held-out video."""
    return build(ViewsStage, recipe, classifier, seed=seed)
