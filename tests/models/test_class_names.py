"""Names of classes are saved with the weights in every layout and read back, and decide no stage's name."""

import json

import pytest
import torch

from vmae_lab.lab.config import build_recipe
from vmae_lab.lab.stages import opened_stage
from vmae_lab.models.checkpoints import open_checkpoint
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import SIZES, ClipShape, Size

SIZE, CLIP = Size(48, 2, 4, 192, 24, 1, 2, 96, patch=8), ClipShape(frames=4, side=16, patch=8)
NAMES = ("wave", "clap, twice", "tauchen (Übung)")
LAYOUTS = ("vmae_lab", "transformers", "official", "remote_code")


def named(names=NAMES) -> VideoClassifier:
    model = VideoClassifier(SIZE, CLIP, 3)
    model.class_names = names
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_survive_every_layout(layout, tmp_path):
    folder = named().save_pretrained(tmp_path / "named", layout)
    size = SIZE if layout == "official" else None
    opened = VideoClassifier.from_pretrained(folder, size=size)
    assert opened.class_names == NAMES
    again = opened.save_pretrained(tmp_path / "again", layout)
    assert open_checkpoint(again, size).config.class_names == NAMES


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_names_none_are_invented(layout, tmp_path):
    folder = named(None).save_pretrained(tmp_path, layout)
    assert open_checkpoint(folder, SIZE if layout == "official" else None).config.class_names is None
    if layout == "vmae_lab":
        assert "class_names" not in json.loads((folder / "config.json").read_text()), "as before there were names"


def test_names_belong_to_the_head_that_was_trained(tmp_path):
    folder = named().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="newly initialized"):
        assert VideoClassifier.from_pretrained(folder, classes=5).class_names is None


def test_names_of_another_number_of_classes_are_ignored_with_a_warning(tmp_path):
    folder = named().save_pretrained(tmp_path, "transformers")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "wave", "1": "clap"}}))
    with pytest.warns(UserWarning, match="names 2 classes, but its head has 3"):
        assert open_checkpoint(folder).config.class_names is None
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "1": "b", "7": "c"}}))
    assert open_checkpoint(folder).config.class_names is None


def test_as_many_names_as_classes():
    with pytest.raises(ValueError, match="class_names has 2 names, but classes is 3"):
        _ = named(("wave", "clap")).config


def test_names_are_no_part_of_a_stage_key(smoke, tmp_path):
    recipe = build_recipe({**smoke, "arms": ["recipe"]})
    torch.manual_seed(0)
    model = VideoClassifier(SIZES["tiny"], ClipShape(8, 24, 2, 4), 8)
    before = opened_stage(recipe, open_checkpoint(model.save_pretrained(tmp_path / "before")))
    model.class_names = tuple("abcdefgh")
    after = opened_stage(recipe, open_checkpoint(model.save_pretrained(tmp_path / "after")))
    assert after.key == before.key


def test_transformers_reads_the_names(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'test'")
    config = transformers.VideoMAEConfig.from_pretrained(named().save_pretrained(tmp_path, "transformers"))
    assert config.id2label == dict(enumerate(NAMES))
    assert config.label2id == {name: row for row, name in enumerate(NAMES)}
