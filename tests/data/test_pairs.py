import numpy as np
import pytest

from kreg.data import ArrayPairs, RandomPairs
from kreg.data.pairs import as_images


def numbered(n, start=0):
    """Images that are constant: image i is i."""
    return np.broadcast_to(np.arange(start, start + n, dtype="float32")[:, None, None], (n, 5, 4))


def drawn(pairs):
    """Which moving and fixed images the batches of one epoch hold."""
    batches = [pairs[i][0] for i in range(len(pairs))]
    return [
        np.concatenate([b[side][:, 0, 0, 0] for b in batches]).tolist()
        for side in ("moving", "fixed")
    ]


# --- arrays ---


def test_array_pairs_come_in_order_and_the_last_batch_may_be_smaller():
    pairs = ArrayPairs(numbered(7), numbered(7, 100), batch_size=3)
    assert [len(pairs[i][0]["moving"]) for i in range(len(pairs))] == [3, 3, 1]
    assert drawn(pairs) == [list(range(7)), list(range(100, 107))]
    assert pairs.image_shape == (5, 4, 1)


def test_array_pairs_shuffle_anew_each_epoch_and_keep_partners():
    first, again = (
        ArrayPairs(numbered(9), numbered(9, 100), batch_size=4, shuffle=True, seed=3)
        for _ in range(2)
    )
    moving, fixed = drawn(first)
    assert moving != sorted(moving)
    assert fixed == [100 + m for m in moving]
    assert drawn(again) == [moving, fixed]
    first.on_epoch_end()
    assert sorted(drawn(first)[0]) == sorted(moving)
    assert drawn(first)[0] != moving


@pytest.mark.parametrize(("dtype", "largest"), [("uint8", 255), ("uint16", 65535), ("float64", 1)])
def test_batches_are_float32_and_integers_scaled(dtype, largest):
    images = np.full((2, 3, 4, 5, 1), largest, dtype)
    (batch,) = ArrayPairs(images, images)[0]
    assert batch["moving"].dtype == np.float32
    assert (batch["moving"] == 1).all()
    assert batch["fixed"].shape == (2, 3, 4, 5, 1)


# --- random pairs ---


def test_random_pairs_depend_on_the_seed_alone():
    def make(**options):
        return RandomPairs(numbered(50), numbered(40, 100), batch_size=8, steps=3, **options)

    pairs, again, other = make(), make(), make(seed=1)
    first = drawn(pairs)
    assert drawn(pairs) == first == drawn(again)
    assert drawn(other) != first
    pairs.on_epoch_end()
    assert drawn(pairs) != first
    stale = make(fresh=False)
    stale.on_epoch_end()
    assert drawn(stale) == first


def test_labels_pair_equal_with_equal_in_equal_shares():
    moving_labels = np.array([0] * 90 + [1] * 9 + [2])
    fixed_labels = np.array([0, 1] * 5)
    pairs = RandomPairs(
        numbered(100),
        numbered(10),
        moving_labels=moving_labels,
        fixed_labels=fixed_labels,
        batch_size=1000,
        steps=1,
    )
    moving, fixed = (np.array(side, int) for side in drawn(pairs))
    assert (moving_labels[moving] == fixed_labels[fixed]).all()
    assert set(moving.tolist()) == set(range(99))
    assert 0.4 < moving_labels[moving].mean() < 0.6


@pytest.mark.parametrize("labels", [None, np.array([0, 0, 1, 1, 1, 2])])
def test_no_image_is_paired_with_itself(labels):
    images = numbered(6)
    pairs = RandomPairs(
        images, images, moving_labels=labels, fixed_labels=labels, batch_size=500, steps=1
    )
    moving, fixed = (np.array(side, int) for side in drawn(pairs))
    assert (moving != fixed).all()
    found = set(zip(moving.tolist(), fixed.tolist(), strict=True))
    possible = {
        (i, j)
        for i in range(6)
        for j in range(6)
        if i != j and (labels is None or labels[i] == labels[j])
    }
    assert found == possible


def test_equal_images_of_two_arrays_may_meet():
    pairs = RandomPairs(numbered(2), numbered(2), batch_size=100, steps=1)
    moving, fixed = drawn(pairs)
    assert moving != [1 - f for f in fixed]


def test_nothing_to_pair_an_image_with_is_refused():
    image, images, labels = numbered(1), numbered(3), [0, 1, 2]
    with pytest.raises(ValueError, match="at least two images"):
        RandomPairs(image, image)
    with pytest.raises(ValueError, match="at least two images"):
        RandomPairs(images, images, moving_labels=labels, fixed_labels=labels)


# --- refusals ---


def test_labels_must_fit():
    with pytest.raises(ValueError, match="one label for each"):
        RandomPairs(numbered(3), numbered(3), moving_labels=[0, 1], fixed_labels=[0, 1, 2])
    with pytest.raises(ValueError, match="one label for each"):
        RandomPairs(numbered(3), numbered(3), moving_labels=[0, 1, 2])
    with pytest.raises(ValueError, match="on both sides"):
        RandomPairs(numbered(2), numbered(2), moving_labels=[0, 1], fixed_labels=[2, 3])


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="equal size"):
        ArrayPairs(numbered(3), np.zeros((3, 4, 4)))
    with pytest.raises(ValueError, match="as many moving as fixed"):
        ArrayPairs(numbered(3), numbered(2))
    with pytest.raises(ValueError, match="`batch_size` >= 1"):
        ArrayPairs(numbered(3), numbered(3), batch_size=0)
    with pytest.raises(ValueError, match="`steps` >= 1"):
        RandomPairs(numbered(3), numbered(3), steps=0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3), "float32"), "shape"),
        (np.zeros((0, 3, 3), "float32"), "n >= 1"),
        (np.zeros((2, 3, 3), "int64"), "dtype int64"),
        (np.zeros((2, 3, 16, 16), "uint8"), "channels last"),
        (np.full((2, 3, 3), np.nan), "18 NaN or infinite"),
    ],
)
def test_what_is_no_stack_of_images_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        as_images(images)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 9, 8), (2, 9, 8, 1)),
        ((2, 9, 8, 3), (2, 9, 8, 3)),
        ((2, 9, 8, 7), (2, 9, 8, 7, 1)),
        ((2, 9, 8, 7, 2), (2, 9, 8, 7, 2)),
    ],
)
def test_a_channel_axis_is_added_where_there_is_none(shape, expected):
    assert as_images(np.zeros(shape)).shape == expected


def test_overlapping_views_of_one_array_are_two_stacks():
    images = np.arange(5, dtype="float32")[:, None, None] * np.ones((5, 4, 4), "float32")
    pairs = RandomPairs(images[:4], images[1:], batch_size=64, steps=4)
    chosen = [pairs.indices(batch) for batch in range(4)]
    assert any((moving == fixed).any() for moving, fixed in chosen)
