import keras
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

import kreg
from kreg.pairwise.images import Image
from kreg.plots import checkerboard, show_pair, show_pairs, show_registration, show_training


def batch(spatial=(24, 20), channels=1, n=3, amplitude=12.0):
    """Random smooth pairs with the displacement that warps them."""
    rng = np.random.default_rng(0)
    moving, fixed = rng.random((2, n, *spatial, channels), "float32")
    noise = rng.normal(size=(n, *spatial, len(spatial)))
    field = gaussian_filter(noise, (0, *[3] * len(spatial), 0)).astype("float32") * amplitude
    warped = keras.ops.convert_to_numpy(kreg.ops.warp(moving, field))
    return moving, fixed, warped, field


def one(**options):
    return [array[0] for array in batch(**options)]


def titled(figure, title):
    (ax,) = [ax for ax in figure.axes if ax.get_title().partition("\n")[0] == title]
    return ax


def text_boxes(figure):
    figure.draw_without_rendering()
    texts = [t for ax in figure.axes for t in (ax.title, ax.xaxis.label, ax.yaxis.label)]
    return [t.get_window_extent() for t in texts if t.get_text()]


def assert_readable(figure):
    """No title or label runs into another or out of the figure."""
    boxes = text_boxes(figure)
    assert boxes
    width, height = figure.canvas.get_width_height()
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
        assert not any(box.overlaps(other) for other in boxes[:i])


@pytest.mark.parametrize(
    "options", [{}, {"channels": 3}, {"spatial": (12, 20)}, {"spatial": (8, 12, 10)}]
)
def test_show_pair_is_a_readable_figure(options, tmp_path):
    figure = show_pair(*one(**options))
    assert isinstance(figure, Figure)
    assert_readable(figure)
    figure.savefig(tmp_path / "pair.png")
    assert (tmp_path / "pair.png").stat().st_size > 10_000


def test_channel_axis_may_be_left_out_and_backend_tensors_be_given():
    moving, fixed, warped, field = one()
    a = show_pair(moving[..., 0], fixed[..., 0], warped[..., 0], field)
    b = show_pair(*map(keras.ops.convert_to_tensor, (moving, fixed, warped, field)))
    for title in ("moving", "warped", "displacement in voxels,"):
        left, right = (titled(f, title).images[0].get_array() for f in (a, b))
        np.testing.assert_array_equal(left, right)


def test_differences_share_one_range_about_zero():
    moving, fixed, warped, field = one()
    figure = show_pair(moving, fixed, warped, field)
    before = titled(figure, "moving − fixed").images[0]
    after = titled(figure, "warped − fixed").images[0]
    np.testing.assert_allclose(before.get_array(), (moving - fixed)[..., 0])
    np.testing.assert_allclose(after.get_array(), (warped - fixed)[..., 0])
    low, high = before.get_clim()
    assert low == -high
    assert after.get_clim() == (low, high)
    largest = max(np.abs(moving - fixed).max(), np.abs(warped - fixed).max())
    assert high == pytest.approx(largest)


def test_images_share_one_grey_scale():
    figure = show_pair(*one())
    limits = {titled(figure, name).images[0].get_clim() for name in ("fixed", "warped")}
    assert len(limits) == 1


def test_grid_lines_are_where_phi_meets_a_line_of_the_moving_grid():
    """Under u = (2, 0) row r of the moving image shows in row r - 2 of the fixed frame."""
    image = np.zeros((28, 28), "float32")
    still, shifted = np.zeros((2, 28, 28, 2), "float32")
    shifted[..., 0] = 2
    rows = []
    for field in (still, shifted):
        ax = titled(show_pair(image, image, image, field), "warped grid")
        horizontal = ax.collections[0]
        rows.append({round(float(path.vertices[0, 1]), 3) for path in horizontal.get_paths()})
    inside = {r - 2 for r in rows[0] if r - 2 > 0}
    assert len(inside) >= 10
    assert inside <= rows[1]


def test_arrows_lead_from_x_to_phi_in_column_and_row():
    image = np.zeros((14, 14), "float32")
    field = np.broadcast_to(np.float32([1, -3]), (14, 14, 2))
    arrows = titled(show_pair(image, image, image, field), "displacement in voxels,").collections[0]
    assert set(arrows.U.ravel()) == {-3}
    assert set(arrows.V.ravel()) == {1}


def test_folding_is_named():
    image = np.zeros((10, 10), "float32")
    grid = np.stack(np.indices((10, 10)), -1).astype("float32")
    folded = grid * [-2, 0]
    titles = [
        titled(show_pair(image, image, image, field), "Jacobian determinant,").get_title()
        for field in (0 * grid, folded)
    ]
    assert "no folding" in titles[0]
    assert "100 % folds" in titles[1]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_volumes_show_the_middle_slice(axis):
    moving, fixed, warped, field = one(spatial=(8, 12, 10))
    figure = show_pair(moving, fixed, warped, field, axis=axis)
    middle = moving.shape[axis] // 2
    shown = titled(figure, "fixed").images[0].get_array()
    np.testing.assert_array_equal(shown, np.take(fixed[..., 0], middle, axis))
    inside = np.delete(np.take(field, middle, axis), axis, -1)
    length = titled(figure, "displacement in voxels,").images[0].get_array()
    np.testing.assert_allclose(length, np.linalg.norm(inside, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("spatial", [(24, 20), (8, 12, 10)])
def test_show_pairs_has_a_row_a_pair(spatial):
    figure = show_pairs(*batch(spatial=spatial), rows=2, labels=["first", "second"])
    assert len(figure.axes) == 12
    assert [ax.get_ylabel() for ax in figure.axes[::6]] == ["first", "second"]
    assert_readable(figure)


def test_show_pairs_shows_each_pair_its_own():
    moving, fixed, warped, field = batch()
    axes = show_pairs(moving, fixed, warped, field).axes
    for i in range(3):
        np.testing.assert_array_equal(axes[6 * i + 1].images[0].get_array(), warped[i, ..., 0])
        np.testing.assert_array_equal(axes[6 * i + 2].images[0].get_array(), fixed[i, ..., 0])


def test_a_still_and_empty_pair_can_be_shown():
    image = np.zeros((10, 10), "float32")
    assert_readable(show_pair(image, image, image, np.zeros((10, 10, 2))))


def test_misfits_are_refused():
    moving, fixed, warped, field = one()
    with pytest.raises(ValueError, match=r"`displacement\[0\]`"):
        show_pair(moving, fixed, warped, field[None])
    with pytest.raises(ValueError, match="`fixed` of shape"):
        show_pair(moving, fixed[1:], warped, field)
    with pytest.raises(ValueError, match="equally many channels"):
        show_pair(moving, np.repeat(fixed, 3, -1), warped, field)
    with pytest.raises(ValueError, match="finite values in `warped`"):
        show_pair(moving, fixed, warped * np.nan, field)
    with pytest.raises(ValueError, match="`axis` from 0 to 1"):
        show_pair(moving, fixed, warped, field, axis=2)
    moving, fixed, warped, field = batch()
    with pytest.raises(ValueError, match="Received: 3, 3, 3, 2"):
        show_pairs(moving, fixed, warped, field[:2])
    with pytest.raises(ValueError, match="3 `labels`"):
        show_pairs(moving, fixed, warped, field, labels=["one"])


def test_training_has_a_panel_for_each_curve():
    history = {
        "loss": [1.0, 0.1, 0.01],
        "warped_ncc": [0.1, 0.5, 0.6],
        "val_loss": [1.1, 0.2, 0.05],
        "learning_rate": [1e-3] * 3,
        "displacement_loss": [0.0, 0.1, float("nan")],
    }
    figure = show_training(history)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["total loss", "warped ncc", "learning rate", "loss of displacement"]
    assert_readable(figure)
    loss, ncc = figure.axes[:2]
    assert [line.get_linestyle() for line in loss.lines] == ["-", "--"]
    assert list(loss.lines[0].get_xdata()) == [1, 2, 3]
    assert list(loss.lines[1].get_ydata()) == history["val_loss"]
    assert (loss.get_yscale(), ncc.get_yscale()) == ("log", "linear")
    assert (loss.get_ylabel(), ncc.get_ylabel()) == ("logarithmic", "")


def test_training_tells_what_rises_as_it_should():
    falls, rises = [1.0, 0.5, 0.1], [0.1, 0.2, 0.3]
    history = {"loss": falls, "displacement_loss": rises, "velocity_loss": rises}
    figure = show_training(history, regularisers=["velocity"])
    assert [ax.get_title() for ax in figure.axes] == [
        "total loss",
        "loss of displacement",  # may be supervised: nothing explains that it gets worse
        "loss of velocity\nregulariser: rises as the images move",
    ]
    assert_readable(figure)
    assert all("rises" not in ax.get_title() for ax in show_training(history).axes)
    for calm in ({"velocity_loss": falls}, {"loss": rises}):
        figure = show_training(history | calm, regularisers=["velocity"])
        assert figure.axes[-1].get_title() == "loss of velocity"


@pytest.mark.parametrize("names", ["flow", ["velocity", "flow"]])
def test_training_without_a_regulariser_of_that_name_is_refused(names):
    with pytest.raises(ValueError, match=r"among .* velocity; .* Received: 'f"):
        show_training({"loss": [1.0], "velocity_loss": [1.0]}, regularisers=names)


@pytest.mark.parametrize("last", [0.04, 1e-3, 1e-9])
def test_training_marks_a_logarithmic_axis(last):
    figure = show_training({"a_loss": np.geomspace(1, last, 9)})
    (ax,) = figure.axes
    figure.draw_without_rendering()
    low, high = ax.get_ylim()
    seen = zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
    marks = [text.get_text() for place, text in seen if low <= place <= high]
    assert 3 <= len(marks) <= 12
    assert all(float(mark.replace("−", "-")) > 0 for mark in marks)


@pytest.mark.parametrize("epochs", [1, 2, 5, 40])
def test_training_marks_whole_epochs(epochs):
    (ax,) = show_training({"loss": list(range(epochs))}).axes
    assert ax.get_title() == "loss"
    low, high = ax.get_xlim()
    marks = [mark for mark in ax.get_xticks() if low <= mark <= high]
    assert marks
    assert all(mark == round(mark) and mark >= 1 for mark in marks)


def test_training_takes_what_fit_returns():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")
    history = model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, validation_split=0.5)
    (ax,) = show_training(history).axes
    assert [len(line.get_xdata()) for line in ax.lines] == [1, 1]


@pytest.mark.parametrize("history", [{}, {"loss": []}, None, [1.0]])
def test_training_without_an_epoch_is_refused(history):
    with pytest.raises(ValueError, match="at least one epoch"):
        show_training(history)


# --- checkerboards and pairwise registrations ---


@pytest.mark.parametrize(("spatial", "squares"), [((24, 20), 4), ((20, 25), 8), ((8, 12, 10), 3)])
def test_checkerboard_takes_turns(spatial, squares):
    fixed, warped = np.random.default_rng(0).random((2, *spatial, 3), "float32")
    fixed[0, 0], warped[0, 0] = 0, 0  # the contrast of both is known
    fixed[-1, -1], warped[-1, -1] = 1, 1
    board = checkerboard(fixed, warped, squares)
    scaled = [checkerboard(image, image) for image in (fixed, warped)]
    side = max(spatial) / squares
    for index in np.ndindex(spatial):
        which = sum(int(i // side) for i in index) % 2
        np.testing.assert_array_equal(board[index], scaled[which][index])
    assert board.shape == (*spatial, 3)


def test_checkerboard_scales_each_image_to_its_own_contrast():
    fixed, warped = np.random.default_rng(0).random((2, 20, 20), "float32")
    board = checkerboard(fixed, warped)
    np.testing.assert_allclose(checkerboard(fixed, 500 * warped - 70), board, atol=1e-5)
    assert (board.min(), board.max()) == (0, 1)
    low, high = np.quantile(fixed, [0.005, 0.995])
    expected = np.clip((fixed - low) / (high - low), 0, 1)
    np.testing.assert_allclose(checkerboard(fixed, fixed)[..., 0], expected, atol=1e-6)


def test_checkerboard_shows_colours_and_averages_other_channels():
    generator = np.random.default_rng(0)
    grey, colour, four = (generator.random((16, 16, c), "float32") for c in (1, 3, 4))
    board = checkerboard(grey, colour, 2)
    assert board.shape == (16, 16, 3)
    np.testing.assert_array_equal(board[:8, :8, 0], board[:8, :8, 2])
    assert np.ptp(board[:8, 8:], axis=-1).max() > 0.1
    np.testing.assert_allclose(checkerboard(grey, four), checkerboard(grey, four.mean(-1)))
    assert checkerboard(grey, four).shape == (16, 16, 1)


def test_checkerboard_of_flat_images_is_flat():
    np.testing.assert_array_equal(checkerboard(np.ones((8, 8)), np.zeros((8, 8))), 0)


def test_checkerboard_refuses_misfits():
    image = np.zeros((8, 8), "float32")
    with pytest.raises(ValueError, match=r"equal spatial sizes.*\(8, 8\) and \(8, 7\)"):
        checkerboard(image, image[:, 1:])
    with pytest.raises(ValueError, match="squares=0"):
        checkerboard(image, image, squares=0)
    with pytest.raises(ValueError, match="finite values in `warped`"):
        checkerboard(image, image * np.nan)


def registration(fixed, moving, shift, *, dimensions=2, **facts):
    """A result that says: x of the fixed image lies at x + shift, counted from the centres."""
    matrix = np.eye(dimensions + 1)
    matrix[:-1, -1] = shift
    facts = {
        "similarity_before": 0.125,
        "similarity_after": 0.5,
        "trusted": True,
        "reason": "12 standard deviations above wrong places",
        "history": {
            "similarity": [0.1, 0.2, 0.4, 0.3, 0.5],
            "stage": ["level 1"] * 3 + ["level 0"] * 2,
        },
    } | facts
    return kreg.Registration(
        matrix=matrix,
        overlap=1.0,
        chance=0.1,
        runner_up=None,
        fixed_shape=np.shape(fixed)[:dimensions],
        fixed_spacing=(1.0,) * dimensions,
        moving_spacing=(1.0,) * dimensions,
        moving=Image(moving, "moving"),
        **facts,
    )


def board_of(figure, when):
    (ax,) = [ax for ax in figure.axes if ax.get_title().startswith(when)]
    return np.asarray(ax.images[0].get_array())


def test_boards_show_the_moving_image_before_and_after():
    fixed, moving = np.random.default_rng(0).random((2, 24, 24), "float32")
    figure = show_registration(fixed, moving, registration(fixed, moving, (5, -3)), squares=4)
    before = checkerboard(fixed, moving, 4)[..., 0]
    np.testing.assert_allclose(board_of(figure, "before"), before, atol=1e-6)
    scaled = checkerboard(moving, moving)[..., 0]
    after = board_of(figure, "after")
    # Row 6 to 11, column 6 to 11 is an even square, row 6 to 11, column 12 to 17 an odd one.
    np.testing.assert_allclose(after[6:12, 6:12], checkerboard(fixed, fixed)[6:12, 6:12, 0])
    np.testing.assert_allclose(after[6:12, 12:18], scaled[11:17, 9:15], atol=1e-6)
    # Columns 0 to 2 come from beyond the moving image.
    np.testing.assert_allclose(after[6:12, :3], 0.5, atol=1e-6)


@pytest.mark.parametrize(
    ("fixed", "moving"),
    [
        ((24, 20), (24, 20)),
        ((24, 20, 3), (30, 26)),
        ((16, 40), (16, 30, 3)),
        ((12, 10, 2), (12, 9, 4)),
    ],
)
def test_show_registration_is_a_readable_figure(fixed, moving, tmp_path):
    generator = np.random.default_rng(0)
    fixed, moving = generator.random(fixed), generator.random(moving)
    figure = show_registration(fixed, moving, registration(fixed, moving, (2, 1)))
    assert_readable(figure)
    figure.savefig(tmp_path / "registration.png")
    assert (tmp_path / "registration.png").stat().st_size > 10_000


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_volumes_of_a_registration_show_the_middle_slice(axis):
    fixed, moving = np.random.default_rng(0).random((2, 8, 12, 10), "float32")
    result = registration(fixed, moving, (0, 1, 0), dimensions=3)
    figure = show_registration(fixed, moving, result, squares=3, axis=axis)
    middle = fixed.shape[axis] // 2
    board = np.take(checkerboard(fixed, moving, 3)[..., 0], middle, axis)
    np.testing.assert_allclose(board_of(figure, "before"), board, atol=1e-6)
    shown = titled(figure, "moving").images[0].get_array()
    np.testing.assert_allclose(
        shown, np.take(checkerboard(moving, moving)[..., 0], middle, axis), atol=1e-6
    )
    with pytest.raises(ValueError, match="`axis` from 0 to 2"):
        show_registration(fixed, moving, result, axis=3)


def test_volumes_with_channels_are_a_batch_of_one():
    fixed, moving = np.random.default_rng(0).random((2, 8, 12, 10, 3), "float32")
    result = registration(fixed, moving[None], (0, 1, 0), dimensions=3)
    assert board_of(show_registration(fixed, moving, result), "after").shape == (12, 10, 3)


@pytest.mark.parametrize("trusted", [True, False])
def test_the_verdict_is_the_title(trusted):
    image = np.random.default_rng(0).random((16, 16))
    reason = "the similarity, 0.1, is not above chance: wrong places reach 0.2, " * 3
    result = registration(image, image, (0, 0), trusted=trusted, reason=reason)
    figure = show_registration(image, image, result)
    assert figure.get_suptitle().startswith("trusted: the" if trusted else "not trusted: the")
    figure.draw_without_rendering()
    (title,) = figure.texts
    box = title.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.canvas.get_width_height()[0]
    assert not any(box.overlaps(other) for other in text_boxes(figure))


def test_each_stage_has_a_curve_of_its_own():
    image = np.random.default_rng(0).random((16, 16))
    figure = show_registration(image, image, registration(image, image, (0, 0)))
    (ax,) = [ax for ax in figure.axes if ax.get_xlabel() == "step"]
    first, border, second = ax.lines[0], ax.lines[2], ax.lines[1]
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([1, 2, 3], [0.1, 0.2, 0.4])
    assert (list(second.get_xdata()), list(second.get_ydata())) == ([4, 5], [0.3, 0.5])
    assert set(border.get_xdata()) == {3.5}
    assert [text.get_text() for text in ax.texts] == ["level 1", "level 0"]


def test_a_registration_without_a_step_can_be_shown():
    image = np.random.default_rng(0).random((16, 16))
    assert_readable(show_registration(image, image, registration(image, image, (0, 0), history={})))


def test_images_of_another_registration_are_refused():
    image = np.random.default_rng(0).random((16, 16))
    result = registration(image, image, (0, 0))
    with pytest.raises(ValueError, match=r"`fixed` of spatial sizes \(16, 16\)"):
        show_registration(image[1:], image, result)
    with pytest.raises(ValueError, match=r"`moving` of spatial sizes \(16, 16\)"):
        show_registration(image, image[1:], result)
    with pytest.raises(ValueError, match="finite values in `fixed`"):
        show_registration(image * np.nan, image, result)
