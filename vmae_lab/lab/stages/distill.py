"""Stage `distill`: a student learns the predictions of a supervised stage's classifier (VideoMAE V2)."""

from dataclasses import replace
from typing import Any, cast

from vmae_lab.evaluation.classification import top1
from vmae_lab.lab.config import Recipe, require
from vmae_lab.lab.stages.cost import Work
from vmae_lab.lab.stages.finetune import SupervisedStage
from vmae_lab.lab.stages.inputs import corrupt_videos_in, replaced_videos
from vmae_lab.lab.stages.stage import HELD_OUT, WEIGHTS, Job, Stage, build, input_encoder_state, positioned, training_cost
from vmae_lab.models.checkpoints import read_weights
from vmae_lab.training.loop import train
from vmae_lab.training.tasks.distill import DistillSettings, DistillTask, Student, Teacher


class DistillStage(SupervisedStage):
    """Training of a student on the clips to pre-train on. If the data has labels, student and teacher are evaluated.

    Inputs: the teacher and, if the student does not start from scratch, the student's encoder.
    """

    kind = "distill"
    reads = ("pretrain", HELD_OUT)

    distill: DistillSettings

    @property
    def teacher(self) -> SupervisedStage:
        teacher = self.inputs[0]
        assert isinstance(teacher, SupervisedStage), "a teacher is a supervised stage"
        return teacher

    def run(self, job: Job) -> dict[str, Any]:
        clips = self.clips("pretrain", self.data.pretrain_sources, job.compute)
        teacher = Teacher(read_weights(job.inputs[0] / WEIGHTS), self.teacher.model, self.teacher.section.readout)
        encoder = input_encoder_state(job.inputs[1]) if job.inputs[1:] else None
        rows, corrupt = list(range(len(clips))), corrupt_videos_in(job.folder)
        task = DistillTask(self.model, self.distill, self.data, clips, rows, encoder, teacher, self.seed, corrupt)
        trained = train(task, job.folder, job.compute, job.progress)
        classifier = cast(Student, trained.model).classifier
        self.save_classifier(classifier, job)
        result = {"metrics": {}, "training": training_cost(trained), "clips": len(clips), **replaced_videos(corrupt)}
        if not self.data.labelled:
            return result
        held_out, counts = self.held_out_clips(job.compute)
        student, teacher_classes = (
            self.predict(model, held_out, job.compute).argmax(1).numpy()
            for model in (classifier, self.teacher.load(job.inputs[0]))
        )
        metrics = {
            "distill": top1(student, held_out.labels),
            "distill_teacher": top1(teacher_classes, held_out.labels),
            "distill_agreement": top1(student, teacher_classes),
        }
        return {**result, "metrics": metrics, **counts}

    @property
    def learns_pretraining_labels(self) -> bool:
        return self.distill.hard_weight > 0

    @property
    def work(self) -> Work:
        """The student's work, and the teacher's forward passes on the same clips."""
        student, clips = super().work, self.steps * self.distill.batch_size + self.held_out_count
        teacher = self.teacher.clip_macs * clips
        return replace(student, training=student.training + teacher, reading_s=2 * student.reading_s)


def distill_stage(recipe: Recipe, teacher: Stage, encoder: Stage | None, seed: int) -> Stage:
    """Build a distillation stage for `recipe.model`, from an encoder or from scratch. Raises RecipeError."""
    settings = require(recipe.distill, "distill", "the plan teaches a student")
    model = positioned(recipe.model, encoder)
    return build(DistillStage, recipe, teacher, encoder, seed=seed, distill=settings, sources=None, model=model)
