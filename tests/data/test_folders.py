import gc
import pickle

import keras
import numpy as np
import pytest
from skimage.io import imsave

import kreg
from kreg.data import FolderPairs
from kreg.data.folders import RandomFolderPairs


@pytest.fixture
def folders(tmp_path):
    for name in ("moving", "fixed"):
        (tmp_path / name).mkdir()
    return tmp_path / "moving", tmp_path / "fixed"


def save(path, image):
    if path.suffix == ".npy":
        np.save(path, image)
    else:
        imsave(path, image, check_contrast=False)


def fill(folders, names, suffix=".png", shape=(6, 5)):
    """Image i of the moving folder is i, of the fixed folder 100 + i."""
    for start, folder in zip((0, 100), folders, strict=True):
        for i, name in enumerate(names):
            save(folder / f"{name}{suffix}", np.full(shape, start + i, "uint8"))


def drawn(pairs):
    return [
        [round(255 * float(image.mean())) for i in range(len(pairs)) for image in pairs[i][0][side]]
        for side in ("moving", "fixed")
    ]


def test_files_of_equal_name_are_pairs(folders):
    fill(folders, "bca")
    pairs = FolderPairs(*folders, batch_size=2)
    assert pairs.names == ["a", "b", "c"]
    assert drawn(pairs) == [[2, 0, 1], [102, 100, 101]]
    assert pairs.image_shape == (6, 5, 1)
    assert [len(pairs[i][0]["fixed"]) for i in range(len(pairs))] == [2, 1]


def test_shuffling_keeps_partners(folders):
    fill(folders, "abcdefgh")
    pairs = FolderPairs(str(folders[0]), str(folders[1]), batch_size=3, shuffle=True)
    first, _ = drawn(pairs)
    pairs.on_epoch_end()
    second, fixed = drawn(pairs)
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second
    assert fixed == [100 + m for m in second]


@pytest.mark.parametrize(
    ("suffix", "image", "expected"),
    [
        (".png", np.uint8([[0, 51], [255, 102]]), [[0, 0.2], [1, 0.4]]),
        (".png", np.uint16([[0, 13107], [65535, 26214]]), [[0, 0.2], [1, 0.4]]),
        (".tif", np.float32([[0, 0.2], [1, -7]]), [[0, 0.2], [1, -7]]),
        (".npy", np.array([[0, 0.2], [1, 0.4]]), [[0, 0.2], [1, 0.4]]),
        (".npy", np.array([[False, True], [True, False]]), [[0, 1], [1, 0]]),
    ],
)
def test_images_become_float32_and_integers_are_scaled(folders, suffix, image, expected):
    for folder in folders:
        save(folder / f"a{suffix}", image)
    (batch,) = FolderPairs(*folders)[0]
    assert batch["moving"].dtype == np.float32
    np.testing.assert_allclose(batch["moving"][0, ..., 0], expected, rtol=1e-6)


def test_colour_stays_and_alpha_goes(folders):
    rgb = np.random.default_rng(0).integers(0, 256, (6, 7, 3), "uint8")
    save(folders[0] / "a.png", rgb)
    save(folders[1] / "a.png", np.concatenate([rgb, rgb[..., :1]], -1))
    (batch,) = FolderPairs(*folders)[0]
    for side in ("moving", "fixed"):
        np.testing.assert_allclose(batch[side][0], rgb / np.float32(255))


def test_volumes_and_two_file_types(folders):
    volume = np.random.default_rng(0).random((6, 7, 8)).astype("float32")
    np.save(folders[0] / "a.npy", volume)
    save(folders[1] / "a.tif", volume)
    (batch,) = FolderPairs(*folders)[0]
    np.testing.assert_array_equal(batch["moving"], volume[None, ..., None])
    np.testing.assert_array_equal(batch["fixed"], volume[None, ..., None])


def test_a_pattern_chooses_and_hidden_files_do_not_count(folders):
    fill(folders, "ab")
    for folder in folders:
        (folder / "a.txt").write_text("notes")
        (folder / ".DS_Store").write_bytes(b"x")
        (folder / "sub").mkdir()
    assert FolderPairs(*folders, pattern="*.png").names == ["a", "b"]


def test_fit_takes_them(folders):
    fill(folders, "abc")
    pairs = FolderPairs(*folders, batch_size=2)
    moving, fixed = (keras.Input(pairs.image_shape, name=name) for name in ("moving", "fixed"))
    warped = keras.layers.Conv2D(1, 1, name="warped")(moving)
    model = kreg.RegistrationModel({"moving": moving, "fixed": fixed}, {"warped": warped})
    model.compile("sgd", loss={"warped": "mse"})
    assert np.isfinite(model.fit(pairs, verbose=0).history["loss"]).all()


def small_model(shape):
    inputs = {name: keras.Input(shape, name=name) for name in ("moving", "fixed")}
    warped = keras.layers.Conv2D(1, 1, kernel_initializer="ones", name="warped")(inputs["moving"])
    model = kreg.RegistrationModel(inputs, {"warped": warped})
    model.compile("sgd", loss={"warped": "mse"})
    return model


def test_threads_read_the_same_pairs(folders):
    fill(folders, "abcdefg")
    alone, together = (FolderPairs(*folders, batch_size=2, workers=n) for n in (1, 2))
    model = small_model(alone.image_shape)
    expected = model.evaluate(alone, verbose=0)
    assert expected > 0.1
    assert model.evaluate(together, verbose=0) == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(model.fit(together, epochs=2, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("kind", [FolderPairs, RandomFolderPairs])
def test_other_processes_may_read_them(folders, kind):
    fill(folders, "abc")
    pairs = kind(*folders, batch_size=2)
    there = pickle.loads(pickle.dumps(pairs))
    np.testing.assert_array_equal(there[0][0]["moving"], pairs[0][0]["moving"])


def test_label_maps_beside_the_images(folders):
    """The class in the docstring of `FolderPairs`."""
    fill(folders, "abc", ".npy")
    for side, folder in zip(("moving", "fixed"), folders, strict=True):
        (folder.parent / f"{side}_labels").mkdir()
        for i, name in enumerate("abc"):
            label = i + 2 if side == "moving" else 4
            np.save(folder.parent / f"{side}_labels" / f"{name}.npy", np.full((6, 5), label))

    class Labelled(FolderPairs):
        def __getitem__(self, batch):
            (data,) = super().__getitem__(batch)
            for side, chosen in zip(("moving", "fixed"), self.indices(batch), strict=True):
                where = folders[0].parent / f"{side}_labels"
                maps = np.stack([np.load(where / f"{self.names[i]}.npy") for i in chosen])
                data[f"{side}_labels"] = np.float32(maps[..., None] == [2, 3, 4])  # one-hot
            return (data,)

    pairs = Labelled(*folders, batch_size=3, shuffle=True)
    (data,) = pairs[0]
    images = np.round(255 * data["moving"][:, 0, 0, 0]).astype(int)
    assert images.tolist() != [0, 1, 2]
    np.testing.assert_array_equal(data["moving_labels"][:, 0, 0], np.eye(3)[images])
    np.testing.assert_array_equal(data["fixed_labels"][:, 5, 4], np.eye(3)[[2, 2, 2]])


# --- random pairs ---


def test_any_file_meets_any_other_but_never_itself(folders):
    fill(folders, "abcd")
    pairs = RandomFolderPairs(folders[0], str(folders[0]), batch_size=50, steps=2)
    moving, fixed = drawn(pairs)
    assert len(moving) == 100
    assert set(zip(moving, fixed, strict=True)) == {
        (i, j) for i in range(4) for j in range(4) if i != j
    }


def test_files_of_two_folders_may_have_equal_names(folders):
    fill(folders, "ab")
    (folders[1] / "b.png").unlink()
    pairs = RandomFolderPairs(*folders, batch_size=30, steps=1)
    moving, fixed = drawn(pairs)
    assert set(moving) == {0, 1}
    assert set(fixed) == {100}
    assert (pairs.moving_names, pairs.fixed_names) == (["a", "b"], ["a"])


def test_random_files_depend_on_seed_epoch_and_batch_alone(folders):
    fill(folders, "abcdefgh")

    def make(**options):
        return RandomFolderPairs(*folders, batch_size=6, steps=3, **options)

    pairs = make()
    first = drawn(pairs)
    assert drawn(make()) == first
    assert drawn(make(seed=1)) != first
    assert pairs.indices(0)[0].tolist() != pairs.indices(1)[0].tolist()
    pairs.on_epoch_end()
    assert drawn(pairs) != first
    stale = make(fresh=False)
    stale.on_epoch_end()
    assert drawn(stale) == first


def test_refuses_a_file_alone_and_no_steps(folders):
    fill(folders, "a")
    with pytest.raises(ValueError, match=r"at least two files.*Received: a in .*moving"):
        RandomFolderPairs(folders[0], folders[0])
    with pytest.raises(ValueError, match=r"`steps` >= 1\. Received: 0"):
        RandomFolderPairs(*folders, steps=0)


# --- what is refused ---


def test_images_without_a_partner_are_left_out_with_a_warning(folders):
    fill(folders, "ab")
    (folders[0] / "b.png").rename(folders[0] / "z.png")
    with pytest.warns(UserWarning, match="2 files .* no partner .* b, z"):
        pairs = FolderPairs(*folders)
    assert pairs.names == ["a"]


def test_a_missing_folder(folders, tmp_path):
    fill(folders, "a")
    with pytest.raises(FileNotFoundError, match="fixde, which is none"):
        FolderPairs(folders[0], tmp_path / "fixde")


def test_a_folder_without_files_of_the_pattern_says_what_is_there(folders):
    fill(folders, "a")
    with pytest.raises(FileNotFoundError, match=r"'\*\.tif'.*a\.png"):
        FolderPairs(*folders, pattern="*.tif")


def test_no_common_name_says_what_is_there(folders):
    fill(folders, "abcdefg")
    for path in folders[1].iterdir():
        path.rename(path.with_name(f"fixed_{path.name}"))
    with pytest.raises(ValueError, match=r"a, b, c, d, e and 2 more in .*fixed_a, fixed_b"):
        FolderPairs(*folders)


def test_two_files_of_one_name(folders):
    fill(folders, "a")
    fill(folders, "a", ".tif")
    with pytest.raises(ValueError, match=r"a\.png and a\.tif"):
        FolderPairs(*folders)


def test_sizes_of_the_two_folders_differ(folders):
    fill(folders, "a")
    save(folders[1] / "a.png", np.zeros((6, 6), "uint8"))
    with pytest.raises(ValueError, match="equal size"):
        FolderPairs(*folders)


def test_another_size_names_the_file(folders):
    fill(folders, "ab")
    save(folders[1] / "b.png", np.zeros((6, 6), "uint8"))
    pairs = FolderPairs(*folders)
    with pytest.raises(ValueError, match=r"\(6, 6, 1\) in .*fixed.b\.png"):
        pairs[0]


# In search of a reader for such files imageio warns of some, and leaves them open.
@pytest.mark.filterwarnings("ignore:The legacy `DICOM` plugin:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("suffix", [".png", ".npy", ".txt"])
def test_an_unreadable_file_is_named(folders, suffix):
    fill(folders, "a")
    for folder in folders:
        (folder / f"b{suffix}").write_bytes(b"no image")
    pairs = FolderPairs(*folders)
    with pytest.raises(ValueError, match=rf"exclude others by `pattern`.*moving.b\{suffix}"):
        pairs[0]
    gc.collect()  # here, where those warnings are expected


def test_nan_names_the_file(folders):
    for folder in folders:
        np.save(folder / "a.npy", np.zeros((6, 5)))
        np.save(folder / "b.npy", np.full((6, 5), np.nan))
    with pytest.raises(ValueError, match=r"moving.b\.npy.*30 NaN"):
        FolderPairs(*folders)[0]
