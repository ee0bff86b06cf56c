"""Kinetics-710 from annotations: labels, repeated videos, leaks, and conversion of heads."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.models.video import R3D_18_Weights

from vmae_lab.data.kinetics710 import RENAMINGS, merge_kinetics, write_hybrid
from vmae_lab.data.video_lists import ListError, read_list
from vmae_lab.models.checkpoints import CheckpointError, convert_head
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import ClipShape, Size

KINETICS = Path(__file__).resolve().parents[3] / "shared" / "kinetics"
HEADER = "label,youtube_id,time_start,time_end,split"
reference = pytest.mark.skipif(not KINETICS.is_dir(), reason="no class lists: ../shared/kinetics is not part of a clone")


def names_of(count: int) -> list[str]:
    """Return the official classes of a data set, in label order."""
    return (KINETICS / f"label_map_k{count}.txt").read_text(encoding="utf-8").splitlines()


def annotate(file: Path, rows, header: str = HEADER) -> Path:
    """Write an annotation file of rows like `("jump", "id", "train")`, ten seconds each."""
    lines = (f'"{label}",{youtube},{start},{start + 10},{split}' for start, (label, youtube, split) in enumerate(rows))
    file.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
    return file


def annotate_classes(folder: Path, sources: dict[str, list[str]]) -> dict[str, list[Path]]:
    """Write annotations with one training and one validation video per class, all different."""
    return {
        source: [
            annotate(folder / f"{source}_{split}.csv", [(name, f"{source}-{split}-{i}", split) for i, name in enumerate(names)])
            for split in ("train", "val")
        ]
        for source, names in sources.items()
    }


@reference
def test_the_renamings_equal_the_official_ones():
    assert json.loads((KINETICS / "k710_identical_label_merge.json").read_text()) == RENAMINGS
    assert len(RENAMINGS) == 15


@reference
def test_conversions_equal_the_official_ones(tmp_path):
    own = {f"k{count}": names_of(count) for count in (400, 600, 700)}
    hybrid = merge_kinetics(annotate_classes(tmp_path, own), names_of(710))
    assert hybrid.classes == tuple(names_of(710))
    for source, names in own.items():  # the official files follow the official order of each data set's classes, ours is sorted
        rows = json.loads((KINETICS / f"label_710to{source[1:]}.json").read_text())
        assert dict(zip(sorted(names), hybrid.conversions[source], strict=True)) == dict(zip(names, rows, strict=True))
    assert set(hybrid.table["label"]) == set(range(710))
    of_k600 = hybrid.table[hybrid.table["source"] == "k600"]
    labels = [hybrid.classes[label] for label in of_k600["label"]]
    assert labels == own["k600"] * 2, "each video keeps its class"


@reference
def test_the_annotations_merge_into_710_classes(tmp_path):
    """The official class lists differ from the annotations in a few names.

    The list of K400 has new names, two of which ("hugging baby", "opening wine bottle") contradict the renamings. The lists of
    K600 and K700 have "throwing ball" instead of "chopping vegetables" and "archaeological excavation".
    """
    replaced = {"k600": "chopping vegetables", "k700": "archaeological excavation"}
    own = {"k400": list(R3D_18_Weights.DEFAULT.meta["categories"])}
    for source, name in replaced.items():
        own[source] = [name if other == "throwing ball" else other for other in names_of(int(source[1:]))]
    files = annotate_classes(tmp_path, own)
    hybrid = merge_kinetics(files)
    assert len(hybrid.classes) == 710
    assert list(hybrid.classes) == sorted(hybrid.classes)
    assert set(own["k700"]) <= set(hybrid.classes)
    assert hybrid.summary["class names merged into another"] == 14, "the fifteenth differs only in a capital letter"
    assert [hybrid.classes[row] for row in hybrid.conversions["k700"]] == sorted(own["k700"])

    official = merge_kinetics({"k400": files["k400"]}, names_of(710)).conversions["k400"]
    rows = json.loads((KINETICS / "label_710to400.json").read_text())
    differing = {own["k400"][i]: names_of(710)[row] for i, row in enumerate(rows) if row != official[i]}
    assert differing == {"hugging": "hugging baby", "opening bottle": "opening wine bottle"}


def three_sets(folder: Path) -> dict[str, list[Path]]:
    """Write small data sets with every kind of repeated video. Their ids describe them."""
    k400 = [
        ("tying tie", "everywhere", "train"),
        ("jogging", "conflict", "train"),
        ("jogging", "twice", "train"),
        ("crying", "twice", "train"),
        ("crying", "leaks-to-k700", "train"),
        ("crying", "held-out", "val"),
        ("crying", "held-out-twice", "validate"),
        ("jogging", "only-tested", "test"),
    ]
    k600 = [
        ("tying necktie", "everywhere", "train"),
        ("crying", "conflict", "train"),
        ("crying", "leaks-to-k700", "validation"),
        ("jogging", "held-out-twice", "validation"),
        ("crying", "only-tested", "validation"),
    ]
    k700 = [
        ("Tying_Necktie", "everywhere", "train"),
        ("massaging person\N{RIGHT SINGLE QUOTATION MARK}s head", "conflict", "train"),
        ("crying", "-dash_First", "train"),
        ("crying", "-dash_first", "train"),
        ("crying", "leaks-to-k700", "validate"),
        ("massaging person's head", "held-out-twice", "validate"),
        ("", "unlabelled", "test"),
    ]
    return {name: [annotate(folder / f"{name}.csv", rows)] for name, rows in {"k400": k400, "k600": k600, "k700": k700}.items()}


def test_repeats_leaks_and_conflicts(tmp_path):
    hybrid = merge_kinetics(three_sets(tmp_path))
    assert hybrid.classes == ("Tying_Necktie", "crying", "jogging", "massaging person's head")
    rows = {
        (row.youtube_id, row.split): (row.source, hybrid.classes[row.label], row.time_start, row.time_end)
        for row in hybrid.table.itertuples()
    }
    assert rows == {
        ("everywhere", "train"): ("k700", "Tying_Necktie", 0, 10),
        ("conflict", "train"): ("k700", "massaging person's head", 1, 11),
        ("-dash_First", "train"): ("k700", "crying", 2, 12),
        ("-dash_first", "train"): ("k700", "crying", 3, 13),
        ("twice", "train"): ("k400", "jogging", 2, 12),
        ("leaks-to-k700", "train"): ("k400", "crying", 4, 14),
        ("held-out", "validation"): ("k400", "crying", 5, 15),
        ("held-out-twice", "validation"): ("k700", "massaging person's head", 5, 15),
        ("only-tested", "validation"): ("k600", "crying", 4, 14),
    }
    assert len(hybrid.table) == len(rows), "every id occurs once"
    assert hybrid.summary == {
        "rows read": 20,
        "test rows left out": 2,
        "repeated training rows left out": 5,
        "training videos with several labels": 2,
        "repeated validation rows left out": 3,
        "validation videos with several labels": 1,
        "validation videos left out that are in a training set": 1,
        "training videos": 6,
        "validation videos": 3,
        "classes": 4,
        "class names merged into another": 1,
    }
    videos = hybrid.summary["training videos"] + hybrid.summary["validation videos"]
    assert videos + sum(n for name, n in hybrid.summary.items() if "left out" in name) == hybrid.summary["rows read"]
    assert hybrid.conversions == {"k400": [1, 2, 0], "k600": [1, 2, 0], "k700": [0, 1, 3]}
    assert all(hybrid.table[name].dtype == np.int64 for name in ("label", "time_start", "time_end"))


def test_the_order_of_the_sets_does_not_matter(tmp_path):
    files = three_sets(tmp_path)
    backwards = merge_kinetics(dict(reversed(files.items())))
    pd.testing.assert_frame_equal(backwards.table, merge_kinetics(files).table)


def test_given_classes_keep_their_order_and_have_priority_over_renamings(tmp_path):
    files = {"k400": [annotate(tmp_path / "a.csv", [("Throwing  ball", "a", "train"), ("tying tie", "b", "train")])]}
    long = "throwing ball (not baseball or American football)"
    assert merge_kinetics(files, ["tying necktie", long]).conversions == {"k400": [1, 0]}
    assert merge_kinetics(files, ["tying necktie", long, "throwing ball"]).conversions == {"k400": [2, 0]}
    assert merge_kinetics(files).classes == (long, "tying necktie")
    with pytest.raises(ListError, match=r"k400 has 1 class not among the 2 classes: tying tie \(did you mean 'tying knee'\?\)"):
        merge_kinetics(files, [long, "tying knee"])
    with pytest.raises(ListError, match=r"2 classes have only 1 distinct name$"):
        merge_kinetics(files, [long, long.upper()])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,id,1,2,tset", "line 4: split 'tset' is not one of train, validate"),
        (",id,1,2,train", "line 4: the label is empty"),
        ("a,,1,2,train", "line 4: '' is"),
        ("a,../id,1,2,val", "line 4: '../id' is"),
        ("a,id,1.5,2,val", "line 4: time_start '1.5' is"),
        ("a,id,1,,val", "line 4: time_end '' is"),
        ("a,id,7,7,val", "line 4: 7 to 7 s"),
        ("a,id,-7,7,val", "line 4: -7 to 7 s"),
        ("a,id,1,2", "line 4: split '' is not one of"),
    ],
)
def test_bad_annotations_are_listed(tmp_path, line, message):
    (tmp_path / "a.csv").write_text(f"{HEADER}\n\na,good,1,2,train\n{line}\n")
    with pytest.raises(ListError, match=rf"a\.csv: 1 bad line; {message}"):
        merge_kinetics({"k400": [tmp_path / "a.csv"]})


def test_unreadable_annotations_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("label,youtube_id\na,b\n")
    with pytest.raises(ListError, match=r"has no column time_start, time_end, split; its columns are label, youtube_id"):
        merge_kinetics({"k400": [tmp_path / "a.csv"]})
    for text in (b"", b"label\n\xff\n", b"a,b\n1,2,3,4\n1,2,3,4,5\n"):
        (tmp_path / "a.csv").write_bytes(text)
        with pytest.raises(ListError, match=r"a\.csv"):
            merge_kinetics({"k400": [tmp_path / "a.csv"]})
    with pytest.raises(ListError, match=r"cannot read the annotations .*none\.csv"):
        merge_kinetics({"k400": [tmp_path / "none.csv"]})
    with pytest.raises(ValueError, match="'kinetics' has no number of classes"):
        merge_kinetics({"kinetics": []})
    with pytest.raises(ValueError, match="k700, k700-2020"):
        merge_kinetics({"k700": [], "k700-2020": []})


def test_test_lists_may_have_no_labels(tmp_path):
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\nb,0,10,test\n")
    files = [annotate(tmp_path / "train.csv", [("jogging", "a", "train")]), tmp_path / "test.csv"]
    assert merge_kinetics({"k400": files}).summary["test rows left out"] == 1


def test_written_lists_are_read(tmp_path):
    hybrid = merge_kinetics(three_sets(tmp_path))
    write_hybrid(hybrid, tmp_path / "out")
    for split, file, count in (("train", "train.csv", 6), ("validation", "val.csv", 3)):
        videos = read_list(file, tmp_path / "out", labelled=True, classes=len(hybrid.classes))
        part = hybrid.table[hybrid.table["split"] == split]
        assert len(videos) == count
        assert list(videos.table["label"]) == list(part["label"])
        first = part.iloc[0]
        assert videos.table["path"][0] == f"{first.youtube_id}_{first.time_start:06d}_{first.time_end:06d}.mp4"
    unlabelled = read_list("pretrain.csv", tmp_path / "out", labelled=False)
    trained = read_list("train.csv", tmp_path / "out", labelled=True, classes=len(hybrid.classes))
    assert list(unlabelled.table["path"]) == list(trained.table["path"])
    assert tuple((tmp_path / "out" / "classes.txt").read_text().splitlines()) == hybrid.classes
    assert json.loads((tmp_path / "out" / "label_4to600.json").read_text()) == hybrid.conversions["k600"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == hybrid.summary
    write_hybrid(hybrid, tmp_path / "out", "{source}/{youtube_id}.mkv")
    assert (tmp_path / "out" / "train.csv").read_text().splitlines()[1] == "k700/everywhere.mkv,0"
    for pattern, message in {
        "{source}.mp4": "several videos the path 'k700.mp4'",
        "{label_name}.mp4": "cannot be filled with",
    }.items():
        with pytest.raises(ListError, match=message):
            write_hybrid(hybrid, tmp_path / "out", pattern)


@pytest.mark.parametrize("readout", ["mean", "attentive"])
def test_a_converted_head_gives_rows_of_the_merged_scores(readout):
    size, clip = Size(24, 1, 2, 48, 24, 1, 2, 48, patch=8), ClipShape(frames=2, side=16, patch=8)
    torch.manual_seed(0)
    merged = VideoClassifier(size, clip, 710, readout, init_scale=1.0).eval()
    torch.nn.init.normal_(merged.head.head.bias)
    rows = np.random.default_rng(0).permutation(710)[:400].tolist()
    single = VideoClassifier(size, clip, 400, readout).eval()
    single.load_state_dict(convert_head(merged.state_dict(), rows))
    video = torch.randint(0, 256, (2, 3, 2, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(single(video), merged(video)[:, rows])


def test_invalid_conversions_are_refused():
    state = {"head.weight": torch.zeros(3, 2), "head.bias": torch.arange(3.0)}
    assert convert_head(state, [2, 0, 2], "head.")["head.bias"].tolist() == [2, 0, 2]
    assert state["head.bias"].tolist() == [0, 1, 2], "the input is not changed"
    for rows in ([0, 3], [-1]):
        with pytest.raises(CheckpointError, match=f"row {rows[-1]} .*3 classes"):
            convert_head(state, rows, "head.")
    with pytest.raises(CheckpointError, match=r"the state has no head\.head\.weight"):
        convert_head(state, [0])
