"""The benchmarks on whole data sets: files as downloaded, resumed runs, failures, tables."""

import functools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from skimage.data import retina
from skimage.io import imsave
from skimage.transform import resize

import kreg
from benchmarks import anhir, fire, landmark_sets

SIZE = 176
#: From fixed to moving points (x, y): a turn, a stretch, a shift.
TRUTH = np.array([[1.03, 0.05, -6.0], [-0.04, 0.98, 9.0], [0.0, 0.0, 1.0]])


def moved(matrix, points):
    image = np.c_[points, np.ones(len(points))] @ matrix.T
    return image[:, :2] / image[:, 2:]


@pytest.fixture(scope="module")
def photograph():
    return resize(retina(), (300, 300), anti_aliasing=True)


def render(photograph, matrix, shape=(SIZE, SIZE)):
    """The moving image: what lies at x in the fixed frame lies at ``matrix x`` here."""
    rows, columns = np.indices(shape)
    points = moved(np.linalg.inv(matrix), np.c_[columns.ravel(), rows.ravel()])[:, ::-1] + 62
    channels = [map_coordinates(photograph[..., c], points.T, order=1) for c in range(3)]
    image = np.stack(channels, -1).reshape(*shape, 3)
    noise = 0.01 * np.random.default_rng(0).standard_normal(image.shape)
    return (255 * np.clip(image + noise, 0, 1)).astype("uint8")


def landmarks(count=10):
    return np.random.default_rng(1).uniform(30, SIZE - 30, (count, 2))


def write_fire(folder, photograph, pairs):
    """FIRE's layout; `pairs` maps names to the true matrices."""
    for name in ("Images", "Ground Truth", "Masks"):
        (folder / name).mkdir(parents=True)
    rows, columns = np.indices((SIZE, SIZE)) - (SIZE - 1) / 2
    mask = 255 * (np.hypot(rows, columns) < 0.49 * SIZE)
    imsave(folder / "Masks/mask.png", mask.astype("uint8"), check_contrast=False)
    for name, matrix in pairs.items():
        for number, shift in ((1, np.eye(3)), (2, matrix)):
            imsave(folder / f"Images/{name}_{number}.jpg", render(photograph, shift))
        lines = np.c_[landmarks(), moved(matrix, landmarks())]
        text = "".join(" ".join(f"{x:.3f}" for x in line) + " \n" for line in lines)
        (folder / f"Ground Truth/control_points_{name}_1_2.txt").write_text(text)
    return folder


def write_anhir(folder, photograph, *, extra=0):
    """ANHIR's layout: two tissues, a pair of each, and a pair without target landmarks."""
    head = ",Target image,Source image,Target landmarks,Source landmarks,status,"
    rows = [head + "Image diagonal [pixels],Image size [pixels]"]
    for number, case in enumerate(("COAD_01", "lung-lesion_2")):
        places = {part: folder / part / case / "scale-5pc" for part in ("images", "landmarks")}
        for place in places.values():
            place.mkdir(parents=True)
        points = {"HE": landmarks(), "CD31": moved(TRUTH, landmarks(10 + extra))}
        for stain, matrix in (("HE", np.eye(3)), ("CD31", TRUTH)):
            image = render(photograph, matrix)
            image = 255 - image if stain == "CD31" else image
            imsave(places["images"] / f"{stain}.png", image, check_contrast=False)
            marks = [f"{i},{x:.3f},{y:.3f}" for i, (x, y) in enumerate(points[stain])]
            (places["landmarks"] / f"{stain}.csv").write_text("\n".join([",X,Y", *marks]))
        paths = [f"{case}/scale-5pc/{name}" for name in ("HE.png", "CD31.png", "HE.csv")]
        paths.append(f"{case}/scale-5pc/CD31.csv")
        rows.append(f'{number},{",".join(paths)},training,248.9,"({SIZE}, {SIZE})"')
    rows.append(rows[-1].replace("HE.csv", "hidden.csv").replace("training", "evaluation"))
    (folder / "dataset_medium.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture
def brief(monkeypatch):
    """kreg's own registration, with less to compile."""
    few = kreg.pairwise.CoarseToFine(samples=(2048, 2048, 2048))
    monkeypatch.setattr(
        kreg, "register", functools.partial(kreg.register, start=None, schedule=few)
    )


@pytest.fixture
def fake(monkeypatch):
    """Registration that finds the truth at once; it counts its calls and can be told to fail."""
    state = SimpleNamespace(calls=0, matrix=TRUTH, error_at={}, trusted=True, reason="clear")

    def register(fixed, moving, **options):
        state.calls += 1
        state.options = options
        if state.calls in state.error_at:
            raise state.error_at[state.calls]
        back = np.linalg.inv(state.matrix)
        return SimpleNamespace(
            matrix=state.matrix,
            trusted=state.trusted,
            reason=state.reason,
            inverse_transform_points=lambda points: moved(back, points[:, ::-1])[:, ::-1],
        )

    monkeypatch.setattr(kreg, "register", register)
    return state


def rows_of(output):
    return [json.loads(line) for line in (output / "pairs.jsonl").read_text().splitlines()]


def cells(text, row):
    """The row of the first table that begins with this cell, by the names of the columns."""
    table = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line] for line in table]
    (found,) = [line for line in table if line[0] == row]
    return dict(zip(table[0], found, strict=True))


# --- with kreg's registration ---


def test_fire_registers_image_2_to_image_1(tmp_path, photograph, capsys, brief):
    folder = write_fire(tmp_path / "FIRE", photograph, {"S01": TRUTH, "P02": np.linalg.inv(TRUTH)})
    command = [str(folder), "--transform", "affine", "--output", str(tmp_path / "out")]
    assert fire.main(command) == 0
    printed = capsys.readouterr()
    assert "Not the whole set: 2 of 134 pairs" in printed.out
    for name, pairs in {"S": "1", "P": "1", "all": "2"}.items():
        found = cells(printed.out, name)
        assert (found["pairs"], found["failed"], found["< 25 px"]) == (pairs, "0", pairs)
        assert float(found["AUC"]) == 1  # below 1 px, every pair
        assert float(found["before, median"]) > 4
        error = float(found["error px, median" if name != "all" else "mean"])
        assert float(found["NAED by height"]) == pytest.approx(error / SIZE, rel=2e-3)
        assert float(found["by diagonal"]) == pytest.approx(error / SIZE / np.sqrt(2), rel=2e-3)
    assert "[2/2] S01: " in printed.err
    (written,) = (tmp_path / "out").glob("*.md")
    assert written.name == "affine-histogram.md"
    assert written.read_text().strip() == printed.out.strip()


def test_anhir_registers_the_source_to_the_target(tmp_path, photograph, capsys, brief):
    folder = write_anhir(tmp_path / "ANHIR", photograph, extra=2)
    assert anhir.main([str(folder), "--output", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    found = cells(text, "all")
    assert (found["pairs"], found["failed"], found["robustness"]) == ("2", "0", "1")
    assert float(found["AMrTRE"]) < 1 / (SIZE * np.sqrt(2))
    assert {"COAD", "lung-lesion"} <= {
        line.split("|")[1].strip() for line in text.splitlines()[4:] if line.startswith("|")
    }
    # Two landmarks of the source have no partner.
    assert "unequal numbers of landmarks, the last left out: 2." in text
    assert [row["landmarks"] for row in rows_of(tmp_path / "out")] == [[10, 12]] * 2


# --- tables ---


def test_the_averages_of_anhir(tmp_path, photograph, capsys, fake):
    """Against the definitions, on errors that are known: the truth, shifted, for both pairs."""
    folder = write_anhir(tmp_path / "ANHIR", photograph)
    fake.matrix = TRUTH @ np.array([[1, 0, 3.0], [0, 1, -4.0], [0, 0, 1]])
    fake.trusted = False
    assert anhir.main([str(folder), "--output", str(tmp_path / "out")]) == 0
    found = cells(capsys.readouterr().out, "all")
    target, source = landmarks(), moved(TRUTH, landmarks())
    relative = 5 / (SIZE * np.sqrt(2))
    for name in ("AMrTRE", "MMrTRE", "AArTRE", "MArTRE", "AMxrTRE", "MMxrTRE"):
        assert float(found[name]) == pytest.approx(relative, rel=1e-3)
    improved = np.mean(np.linalg.norm(target - source, axis=1) > 5)
    assert 0 < improved < 1
    assert float(found["robustness"]) == pytest.approx(improved, rel=1e-3)
    assert (found["trusted"], found["of these better than before"]) == ("0", "0")


def test_fire_gives_rows_with_and_without_the_pair_whose_points_are_wrong():
    def outcome(name, error):
        reference = np.zeros((2, 2))
        return landmark_sets.Outcome(
            name=name,
            group=name[0],
            failure=None,
            reference=reference,
            start=reference + 100,
            carried=reference + np.array([0, error]),
            shape=(300, 400),
            unequal=False,
            trusted=error < 30,
            seconds=2.0,
            commit="abc",
        )

    outcomes = [outcome("S01", 0.5), outcome("P01", 4.5), outcome("P37", 50), outcome("P02", 26)]
    text = "\n".join(fire.table(outcomes))
    assert cells(text, "P")["AUC"] == "0.28"  # 21 of 25 steps, 0, 0
    assert cells(text, "P without P37")["AUC"] == "0.42"
    assert cells(text, "all without P37")["pairs"] == "3"
    found = cells(text, "all")
    assert float(found["AUC"]) == pytest.approx((1 + 0.84) / 4)
    assert (found["< 25 px"], found["trusted"], found["of these < 25 px"]) == ("2", "3", "2")
    assert float(found["NAED by height"]) == pytest.approx(81 / 4 / 300, rel=1e-3)
    assert float(found["by diagonal"]) == pytest.approx(81 / 4 / 500, rel=1e-3)
    assert "Mean of the AUCs of these classes: 0.64." in text


# --- resuming ---


def test_a_stopped_run_goes_on_and_finished_pairs_are_not_lost(tmp_path, photograph, capsys, fake):
    folder = write_fire(tmp_path / "FIRE", photograph, dict.fromkeys(("S01", "S02", "S03"), TRUTH))
    output = tmp_path / "out"
    command = [str(folder), "--output", str(output)]
    fake.error_at = {2: KeyboardInterrupt()}
    assert fire.main(command) == 130
    assert "run again to go on" in capsys.readouterr().err
    assert [row["pair"] for row in rows_of(output)] == ["S01"]
    assert fire.main([*command, "--limit", "1"]) == 0
    assert fake.calls == 2
    # A line that was cut short is no finished pair, and harms none after it.
    log = output / "pairs.jsonl"
    log.write_bytes(log.read_bytes() + b'{"pair": "S02", "fail')
    assert fire.main(command) == 0
    assert fake.calls == 4
    assert len(log.read_text().splitlines()) == 4
    log.write_text(re.sub('"commit": "[^"]*"', '"commit": "zzz"', log.read_text(), count=1))
    capsys.readouterr()
    assert fire.main(command) == 0
    assert fake.calls == 4
    printed = capsys.readouterr()
    assert printed.err.count("(from the log)") == 3
    assert re.search(r"commit \w.*, zzz,", printed.out)


def test_what_the_user_interrupted_within_register_is_not_a_result(
    tmp_path, photograph, capsys, fake
):
    folder = write_fire(tmp_path / "FIRE", photograph, {"S01": TRUTH})
    fake.reason = "interrupted: the best transform so far"
    assert fire.main([str(folder), "--output", str(tmp_path / "out")]) == 130
    assert not (tmp_path / "out/pairs.jsonl").exists()


def test_another_method_or_other_landmarks_are_done_anew(tmp_path, photograph, capsys, fake):
    folder = write_fire(tmp_path / "FIRE", photograph, {"S01": TRUTH})
    command = [str(folder), "--output", str(tmp_path / "out")]
    fire.main(command)
    assert isinstance(fake.options["transform"].group, kreg.groups.Homography)
    assert fake.options["fixed_mask"].shape == (SIZE, SIZE)
    fire.main([*command, "--transform", "affine", "--similarity", "mine"])
    assert fake.calls == 2
    assert type(fake.options["transform"].group) is kreg.groups.Affine
    assert isinstance(fake.options["similarity"], kreg.pairwise.CriticRatio)
    truth = folder / "Ground Truth/control_points_S01_1_2.txt"
    truth.write_text("1 2 3 4\n" + truth.read_text())
    fire.main(command)
    assert fake.calls == 3
    fire.main([*command, "--redo"])
    assert fake.calls == 4


# --- bad input ---


def test_a_pair_that_cannot_be_used_fails_alone_and_counts_as_infinite(
    tmp_path, photograph, capsys, fake
):
    pairs = dict.fromkeys(("S01", "S02", "S03", "S04", "S05"), TRUTH)
    folder = write_fire(tmp_path / "FIRE", photograph, pairs)
    (folder / "Images/S01_2.jpg").unlink()
    (folder / "Images/S02_1.jpg").write_bytes(b"no photograph")
    truth = folder / "Ground Truth/control_points_S03_1_2.txt"
    whole = truth.read_text()
    truth.write_text(whole + "17 18 19\n")
    (folder / "Ground Truth/control_points_S04_1_2.txt").unlink()
    fake.error_at = {1: RuntimeError("out of\nmemory")}
    command = [str(folder), "--output", str(tmp_path / "out")]
    assert fire.main(command) == 1
    assert "error: none of 5 pairs" in capsys.readouterr().err
    assert fire.main(command) == 0
    text = capsys.readouterr().out
    assert re.search(r"- S01: Expected the image .*S01_2\.jpg\. Received: no such file", text)
    assert re.search(r"- S02: Expected an image in .*S02_1\.jpg", text)
    assert re.search(r"- S03: Expected the numbers x1 y1 x2 y2 in .*S03_1_2\.txt, line 11", text)
    assert re.search(r"- S04: Expected the file .*S04_1_2\.txt", text)
    everything, finished = cells(text, "all"), cells(text, "all, finished")
    assert (everything["pairs"], everything["failed"]) == ("5", "4")
    assert (everything["AUC"], everything["mean"]) == ("0.2", "inf")
    assert (finished["pairs"], finished["AUC"]) == ("1", "1")
    # What failed is tried again, and now succeeds.
    truth.write_text(whole)
    assert fire.main(command) == 0
    assert cells(capsys.readouterr().out, "all")["failed"] == "3"
    log = (tmp_path / "out/pairs.jsonl").read_text()
    assert "RuntimeError: out of memory" in log
    assert "Infinity" not in log


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3 4\n1 2 x 4\n", "line 2"),
        ("1 2 3 4\n\n1 2 nan 4\n", "line 3"),
        ("1 2 3 4 5\n", "line 1"),
        ("\n", "an empty file"),
    ],
)
def test_control_points_that_are_none(tmp_path, text, message):
    path = tmp_path / "control_points.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        fire.read_control_points(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",X,Y\n0,1.5,2.5\n1,,3\n", "line 3"),
        (",X,Y\n0,1.5,2.5\n1.5,3\n", "line 3"),
        (",X,Y\n0,1,5,2,5\n", "line 2"),
        ("a,b\n1,2\n", "columns X and Y"),
        (",X,Y\n", "without rows"),
        ("", "columns X and Y"),
        ("\xff\xfe", "bytes that are none"),
    ],
)
def test_landmarks_that_are_none(tmp_path, text, message):
    path = tmp_path / "landmarks.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as error:
        anhir.read_landmarks(path)
    assert str(path) in str(error.value)


def test_landmarks_are_rows_and_columns(tmp_path):
    path = tmp_path / "landmarks.csv"
    path.write_text(" ,X,Y\n1,10,20\n2,11.5,21\n\n")
    np.testing.assert_array_equal(anhir.read_landmarks(path), [[20, 10], [21, 11.5]])
    path.write_text("1 2 3 4\n5 6 7 8\n")
    fixed, moving = fire.read_control_points(path)
    np.testing.assert_array_equal(fixed, [[2, 1], [6, 5]])
    np.testing.assert_array_equal(moving, [[4, 3], [8, 7]])


def test_pairs_without_released_landmarks_are_run_only_on_demand(
    tmp_path, photograph, capsys, fake
):
    folder = write_anhir(tmp_path / "ANHIR", photograph)
    fake.matrix = TRUTH
    command = [str(folder), "--output", str(tmp_path / "out")]
    assert anhir.main([*command, "--status", "evaluation"]) == 1
    assert "hidden.csv" in capsys.readouterr().out
    assert anhir.main([*command, "--status", "all"]) == 0
    found = cells(capsys.readouterr().out, "all")
    assert (found["pairs"], found["failed"], found["AMrTRE"]) == ("3", "1", "inf")
    assert float(found["robustness"]) == pytest.approx(2 / 3, rel=1e-3)


def test_what_is_no_set_is_said_in_one_line(tmp_path, capsys):
    def said(code, command):
        assert command() == code
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    here = [str(tmp_path), "--output", str(tmp_path / "out")]
    assert "'Ground Truth'" in said(2, lambda: fire.main(here))
    assert "dataset_medium.csv" in said(2, lambda: anhir.main(here))
    (tmp_path / "dataset_medium.csv").write_text("Target image,Source image\na,b\n")
    assert "Target landmarks, Source landmarks" in said(2, lambda: anhir.main(here))
    (tmp_path / "dataset_medium.csv").write_text(",".join(anhir.COLUMNS) + "\n")
    assert "Received: none" in said(2, lambda: anhir.main(here))
    for name in ("Images", "Ground Truth"):
        (tmp_path / name).mkdir()
    assert "S01_1.jpg" in said(2, lambda: fire.main(here))
    assert "at least 1" in said(2, lambda: fire.main([*here, "--limit", "0"]))


def test_images_come_as_they_are_without_transparency(tmp_path):
    import tifffile

    image = np.random.default_rng(0).integers(0, 255, (20, 30, 4), "uint8")
    imsave(tmp_path / "a.png", image, check_contrast=False)
    np.testing.assert_array_equal(landmark_sets.read_image(tmp_path / "a.png"), image[..., :3])
    tifffile.imwrite(tmp_path / "plain.tif", image[..., :3])
    tifffile.imwrite(tmp_path / "packed.tif", image[..., :3], compression="zlib")
    plain = landmark_sets.read_image(tmp_path / "plain.tif")
    assert isinstance(plain, np.memmap)
    np.testing.assert_array_equal(plain, image[..., :3])
    packed = landmark_sets.read_image(tmp_path / "packed.tif")
    np.testing.assert_array_equal(packed, image[..., :3])
