"""Pre-extracted features: every format is read, and invalid files are named."""

import numpy as np
import pandas as pd
import pytest
import torch

from vmae_lab.data.video_features import FeatureFolder, open_features, read_features
from vmae_lab.data.video_lists.formats import ListError

TABLE = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)


def write(file, how: str) -> None:
    forms = {
        "npy": lambda: np.save(file, TABLE),
        "npz": lambda: np.savez(file, features=TABLE, start_s=np.arange(7)),
        "npz alone": lambda: np.savez(file, whatever=TABLE),
        "pt": lambda: torch.save(torch.from_numpy(TABLE), file),
        "pt of half precision": lambda: torch.save(torch.from_numpy(TABLE).half(), file),
        "pt dict": lambda: torch.save({"feats": torch.from_numpy(TABLE), "fps": torch.tensor(30)}, file),
        "parquet": lambda: pd.DataFrame({"first_frame": range(7), "features": list(TABLE)}).to_parquet(file),
    }
    forms[how]()


@pytest.mark.parametrize("how", ["npy", "npz", "npz alone", "pt", "pt of half precision", "pt dict", "parquet"])
def test_every_format_is_read(tmp_path, how):
    file = tmp_path / f"video.{how.split()[0]}"
    write(file, how)
    found = read_features(file)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, TABLE, atol=2e-3 if "half" in how else 0)


@pytest.mark.parametrize("form", ["npy", "npz"])
def test_features_of_several_videos(tmp_path, form):
    for name, rows in (("a", 7), ("b", 3)):
        np.save(tmp_path / f"{name}.npy", TABLE[:rows])
        np.savez(tmp_path / f"{name}.npz", TABLE[:rows])
    features = open_features({name: tmp_path / f"{name}.{form}" for name in "ab"}, stride=4, frames=16)
    assert (features.lengths, features.width) == ({"a": 7, "b": 3}, 4)
    assert torch.equal(features.read("b"), torch.from_numpy(TABLE[:3]))
    assert torch.equal(features.read("a", 2, 4), torch.from_numpy(TABLE[2:6]))
    steps = np.array([0.0, 2.5])
    seconds = features.times(steps, rate=25.0)
    assert seconds.tolist() == [8 / 25, 18 / 25]
    np.testing.assert_allclose(features.steps(seconds, rate=25.0), steps)


def test_all_faults_are_reported_at_once(tmp_path):
    np.save(tmp_path / "good.npy", TABLE)
    np.save(tmp_path / "narrow.npy", TABLE[:, :3])
    np.save(tmp_path / "flat.npy", TABLE[0])
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:150])
    names = ["good", "narrow", "flat", "words", "cut", "absent"]
    with pytest.raises(ListError) as caught:
        open_features({name: tmp_path / f"{name}.npy" for name in names}, 4, 16)
    message = str(caught.value)
    assert "features of 5 of 6 videos cannot be used" in message
    for part in (
        "narrow.npy has width 3, the first file 4",
        "flat.npy has",
        "words.npy has",
        "cut.npy",
        "absent.npy: No such file",
    ):
        assert part in message
    assert "good.npy" not in message


def test_invalid_files_are_refused(tmp_path):
    broken = np.full((3, 4), 1.0)
    broken[1, 2] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    with pytest.raises(ListError, match=r"nan\.npy has values that are not finite"):
        read_features(tmp_path / "nan.npy")
    features = open_features({"nan": tmp_path / "nan.npy"}, 4, 16)
    assert len(features.read("nan", 2)) == 1, "only the requested part is checked"
    with pytest.raises(ListError, match=r"nan\.npy has values that are not finite"):
        features.read("nan", 1)
    np.savez(tmp_path / "two.npz", a=TABLE, b=TABLE)
    with pytest.raises(ListError, match=r"two\.npz: it has a, b; expected a single array, or one named features"):
        read_features(tmp_path / "two.npz")
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ListError, match=r"cannot read .*junk\.npz"):
        read_features(tmp_path / "junk.npz")


def test_pickled_code_is_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return open, (str(ran), "w")

    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(ListError, match=r"cannot read .*evil\.pt"):
        read_features(tmp_path / "evil.pt")
    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(ListError, match=r"cannot read .*evil\.npy"):
        read_features(tmp_path / "evil.npy")
    assert not ran.exists()


def test_patterns_are_checked():
    assert FeatureFolder(folder="x", pattern="v_{video}.npz").pattern == "v_{video}.npz"
    for wrong in ("features.npy", "{video}.h5"):
        with pytest.raises(ValueError, match=r"pattern '.*\{video\}"):
            FeatureFolder(folder="x", pattern=wrong)
