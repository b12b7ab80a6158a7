"""Cine sequences: rings that beat."""

import imageio.v3 as imageio
import keras
import numpy as np
import pytest
import scipy.io

from kreg import losses, models
from kreg.data import CinePairs, load_cine_folder, load_lvquan, split_subjects


def beating_rings(subjects=3, frames=8, size=24):
    """A ring a subject, whose radius goes through one period."""
    rng = np.random.default_rng(0)
    grid = np.indices((size, size)).astype("float64")
    sequences = np.empty((subjects, frames, size, size), "float32")
    for sequence in sequences:
        centre = (size - 1) / 2 + rng.uniform(-1.5, 1.5, 2)
        radius, width = rng.uniform(0.24, 0.3) * size, rng.uniform(1.5, 2.0)
        distance = np.linalg.norm(grid - centre[:, None, None], axis=0)
        for t in range(frames):
            beat = radius * (1 + 0.2 * np.cos(2 * np.pi * t / frames))
            sequence[t] = np.exp(-(((distance - beat) / width) ** 2))
    return sequences


def test_frame_t_is_paired_with_frame_t_plus_k_of_the_same_subject():
    sequences = beating_rings()
    pairs = CinePairs(sequences, steps=(1, -2), batch_size=7)
    assert len(pairs.subjects) == 3 * 8 * 2
    assert len(pairs) == 7
    assert pairs.image_shape == (24, 24, 1)
    drawn = [pairs[i][0] for i in range(len(pairs))]
    moving, fixed = (
        np.concatenate([batch[side] for batch in drawn]) for side in ("moving", "fixed")
    )
    expected = [
        (subject, t, (t + k) % 8) for subject in range(3) for k in (1, -2) for t in range(8)
    ]
    for i, (subject, t, other) in enumerate(expected):
        np.testing.assert_array_equal(fixed[i, ..., 0], sequences[subject, t])
        np.testing.assert_array_equal(moving[i, ..., 0], sequences[subject, other])
    np.testing.assert_array_equal(pairs.subjects, [subject for subject, _, _ in expected])


def test_sequences_that_do_not_repeat_end():
    pairs = CinePairs(list(beating_rings())[:2], steps=3, cyclic=False, batch_size=100)
    assert pairs.subjects.tolist() == [0] * 5 + [1] * 5


def test_sequences_may_differ_in_length_and_hold_volumes():
    long, short = np.zeros((5, 6, 7, 8, 1), "float32"), np.ones((3, 6, 7, 8, 1), "float32")
    pairs = CinePairs([long, short], steps=2, batch_size=4)
    assert pairs.subjects.tolist() == [0] * 5 + [1] * 3
    assert pairs[1][0]["moving"].shape == (4, 6, 7, 8, 1)


def test_subjects_may_differ_in_type():
    low, high = np.full((2, 4, 4), 51, "uint8"), np.full((2, 4, 4), 13107, "uint16")
    (batch,) = CinePairs([low, high], batch_size=4)[0]
    np.testing.assert_allclose(batch["fixed"], 0.2, rtol=1e-6)


def test_each_epoch_has_another_order_that_the_seed_tells():
    sequences = beating_rings()
    first, again = (CinePairs(sequences, shuffle=True, seed=3, batch_size=24) for _ in range(2))
    before = first[0][0]["fixed"]
    np.testing.assert_array_equal(before, again[0][0]["fixed"])
    first.on_epoch_end()
    assert not np.array_equal(before, first[0][0]["fixed"])


@pytest.mark.parametrize(
    ("sequences", "options", "message"),
    [
        (beating_rings(), {"steps": 0}, "other than 0"),
        (beating_rings(frames=2), {"steps": 2, "cyclic": False}, "more frames"),
        ([], {}, "one sequence a subject"),
        ([np.zeros((4, 8, 8)), np.zeros((4, 8, 9))], {}, "equal image size"),
        ([np.full((4, 8, 8), np.nan)], {}, "finite"),
    ],
    ids=["step 0", "too short", "none", "sizes", "NaN"],
)
def test_bad_sequences_are_refused(sequences, options, message):
    with pytest.raises(ValueError, match=rf"(?s)Expected.*{message}.*Received"):
        CinePairs(sequences, **options)


def test_no_subject_is_on_both_sides_of_a_split():
    sequences = [np.full((2, 4, 4), i, "float32") for i in range(10)]
    train, test = split_subjects(sequences, 0.3, seed=1)
    sides = [{int(sequence[0, 0, 0]) for sequence in side} for side in (train, test)]
    assert [len(side) for side in sides] == [7, 3]
    assert sides[0] | sides[1] == set(range(10))
    assert split_subjects(sequences, 0.3, seed=2)[1][0] is not test[0]
    assert [len(side) for side in split_subjects(sequences[:2], 0.99)] == [1, 1]
    for wrong in ((sequences[:1], 0.5), (sequences, 1.0)):
        with pytest.raises(ValueError, match=r"two subjects or more.*Received"):
            split_subjects(*wrong)


def test_the_challenges_layout_is_read(tmp_path):
    sequences = beating_rings(subjects=2, frames=20, size=10)
    stacked = sequences.reshape(40, 10, 10).transpose(1, 2, 0)  # (height, width, frames)
    path = tmp_path / "hearts.mat"
    scipy.io.savemat(path, {"images_LV": stacked.astype("float64"), "other": 1.0})
    found = load_lvquan(path)
    assert found.dtype == "float32"
    np.testing.assert_array_equal(found, sequences)
    with pytest.raises(ValueError, match=r"variable 'frames'.*Received: .*images_LV"):
        load_lvquan(path, variable="frames")
    with pytest.raises(ValueError, match=r"subjects \* 7.*Received: shape \(10, 10, 40\)"):
        load_lvquan(path, frames=7)
    path.write_bytes(b"MATLAB 7.3 MAT-file" + bytes(105) + b"\x00\x02IM" + bytes(8))
    with pytest.raises(ValueError, match=r"-v7"):
        load_lvquan(path)
    path.write_text("no MATLAB file")
    with pytest.raises(ValueError, match=r"Expected a MATLAB file"):
        load_lvquan(path)
    scipy.io.savemat(path, {"images_LV": np.zeros((10, 10, 40))}, do_compression=True)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"Expected a MATLAB file"):
        load_lvquan(path)
    with pytest.raises(FileNotFoundError, match=r"Expected a MATLAB file"):
        load_lvquan(tmp_path / "none.mat")


def test_folders_of_frames_are_read_in_natural_order(tmp_path):
    for subject in (10, 9):
        folder = tmp_path / f"heart{subject}"
        folder.mkdir()
        for t in range(12):
            imageio.imwrite(folder / f"t{t}.png", np.full((6, 7), 10 * subject + t, "uint8"))
    (tmp_path / "notes.txt").write_text("no subject")
    (tmp_path / "empty").mkdir()
    hidden = tmp_path / ".copies"
    hidden.mkdir()
    imageio.imwrite(hidden / "t0.png", np.zeros((6, 7), "uint8"))
    sequences = load_cine_folder(tmp_path, "*.png")
    pairs = CinePairs(sequences, batch_size=24)
    fixed = np.rint(255 * pairs[0][0]["fixed"][:, 0, 0, 0]).astype(int)
    np.testing.assert_array_equal(fixed, [*range(90, 102), *range(100, 112)])
    for wrong in (tmp_path / "none", tmp_path / "heart9"):
        with pytest.raises(FileNotFoundError, match=r"Expected.*subject.*Received"):
            load_cine_folder(wrong)


def test_a_model_learns_to_follow_the_beat():
    keras.utils.set_random_seed(0)
    train, test = split_subjects(beating_rings(subjects=6), 0.3)
    pairs = CinePairs(train, steps=(1, 2), shuffle=True, batch_size=16)
    model = models.dirnet((24, 24, 1), filters=(8,), spacing=4)
    model.compile(keras.optimizers.Adam(5e-3), loss={"warped": losses.NCC()})
    (held_out,) = CinePairs(test, steps=2, batch_size=16)[0]
    before = float(model.evaluate(held_out, verbose=0))
    model.fit(pairs, epochs=15, verbose=0)
    assert float(model.evaluate(held_out, verbose=0)) < 0.7 * before
