import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image as pillow

from kreg import report
from kreg.io import FileError, Image
from tests.report.alignments import aligned, bent, pair, patient, scene

#: Elements that have no end.
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """A page taken apart; raises AssertionError where elements do not nest."""

    def __init__(self, text):
        super().__init__()
        self.text, self.images, self.addresses, self.said, self._open = text, [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert "style" not in attributes, "the policy forbids it"
        assert not [name for name in attributes if name.startswith("on")]
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "img":
            assert "alt" in attributes
            self.images.append(attributes)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self._open):
            self.said.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.said).split())

    def row(self, name):
        (found,) = re.findall(rf"<tr><th[^>]*>{re.escape(name)}</th><td>(.*?)</td></tr>", self.text)
        return found


def picture(attributes):
    head, _, data = attributes["src"].partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.asarray(pillow.open(io.BytesIO(base64.b64decode(data))))


@pytest.fixture
def written(tmp_path):
    def write(alignment, **options):
        report.write(tmp_path / "report.html", alignment, **options)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return write


def in_colour():
    colours = np.stack([scene((40, 48), seed) for seed in range(3)], axis=-1).astype("uint8")
    return aligned(Image(colours), Image(scene((36, 50))))


def volume():
    grid = patient()
    images = [Image(scene(grid.shape, seed), grid.affine, "mm") for seed in (0, 1)]
    return aligned(*images, field=bent(grid.shape))


@pytest.mark.parametrize(
    ("make", "count"),
    # Fixed, before and after; two boards, two differences; lattice; two of saliency.
    [(in_colour, 3 + 4 + 1 + 2), (volume, 15 * (3 + 4 + 4 + 2))],
)
def test_holds_all_it_shows(written, make, count):
    page = written(make())
    assert "://" not in page.text
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    shown = [image for image in page.images if image["alt"]]
    assert len(shown) == count
    for image in shown:
        assert np.ptp(picture(image).astype(int)) > 5, image["alt"]
    assert len({image["alt"] for image in shown}) == count
    assert len(page.text) < 5e6


def test_policy_allows_its_own_style_and_script_alone(written):
    page = written(pair())
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page.text)
    assert policy.startswith("default-src 'none'; img-src data:;")
    for name in ("style", "script"):
        (inner,) = re.findall(rf"<{name}>(.*?)</{name}>", page.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy


def test_what_comes_from_outside_is_text(written):
    evil = '<b onload="x()">&\'"</script><script>'
    images = [Image(scene((20, 24), seed), source=f"/data/{evil[:18]}.png") for seed in (0, 1)]
    alignment = aligned(*images, reason=evil)
    alignment.registration.history["stage"][:] = [evil] * 7
    page = written(alignment, provenance={evil: evil})
    assert page.text.count("<script") == 1
    assert "<b " not in page.text
    assert page.words.count(evil) == 4  # the reason, a stage, a name and its value


@pytest.mark.parametrize("trusted", [True, False])
def test_verdict_is_said_in_words(written, trusted):
    page = written(pair(trusted=trusted, reason="so it is"))
    assert ("NOT TRUSTED" in page.words) != trusted
    assert "Why: so it is." in page.words
    assert page.text.index("so it is") < page.text.index("<img")
    assert ("If it does not fit, try" in page.words) != trusted


def test_the_difference_of_equal_images_is_empty_and_the_page_says_so(written):
    image = Image(scene((40, 48)))
    page = written(aligned(image, image))
    (found,) = [one for one in page.images if one["alt"] == "Difference, after"]
    assert picture(found).min() > 240
    assert "same scale as before: where it is empty, that is white, the images are equal" in (
        page.words
    )


def test_what_moved_everywhere_alike_is_told_by_a_number(written):
    page = written(pair(matrix=np.array([[1, 0, 3], [0, 1, 4], [0, 0, 1.0]])))
    assert '<p class="big">5 px</p>' in page.text
    assert "Distance moved" not in {image["alt"] for image in page.images}


def test_numbers_of_a_linear_transform(written):
    angle = np.deg2rad(30)
    matrix = np.eye(3)
    matrix[:2, :2] = 1.25 * np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    middle = np.array([23.5, 19.5])
    matrix[:2, 2] = middle - matrix[:2, :2] @ middle
    page = written(pair(matrix=matrix))
    assert page.row("Turned by") == "30.00°"
    assert page.row("Lengths, moving to fixed") == "0.8000 × 0.8000"
    assert page.row("Area, moving by fixed") == "1.5625"
    assert page.row("The middle moved by") == "0.00 px"
    assert page.row("Overlap").startswith("87.5%")
    assert '<p class="big">1.562</p>' in page.text
    assert "Folds" not in page.words


def test_numbers_of_a_displacement(written):
    field = np.zeros((40, 48, 2), "float32")
    field[..., 1] = -2 * np.arange(48)  # from the last column to the first, and beyond
    page = written(pair(field=field))
    assert page.row("Folds") == "100.00% of the voxels"
    assert page.row("Jacobian determinant of it") == "-1.000 to -1.000"
    assert page.row("Displacement beyond the linear part") == "47.00 px on average, at most 94.00"


def test_masks_are_shown_and_checked(written):
    mask = np.zeros((40, 48), bool)
    mask[10:30, 10:30] = True
    page = written(pair(), fixed_mask=Image(mask.astype("uint8")), moving_mask=mask)
    assert {"Fixed mask", "Moving mask"} <= {image["alt"] for image in page.images}
    with pytest.raises(ValueError, match=r"`moving_mask` of the sizes \(40, 48\).*Received"):
        written(pair(), moving_mask=mask[1:])


def test_broken_and_empty_values_are_no_obstacle(written):
    values = scene((30, 32))
    values[5:9, 5:9] = np.nan
    page = written(aligned(Image(values), Image(np.full((30, 32), 7.0))))
    assert "NaN" not in page.words
    # Nowhere do the images meet.
    away = np.array([[1, 0, 500], [0, 1, 500], [0, 0, 1.0]])
    after = written(pair(matrix=away), overwrite=True).images
    (lost,) = [
        picture(image) for image in after if image["alt"] == "moving image after registration"
    ]
    assert (lost == 128).all()


def test_replaces_nothing_unasked(written, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(FileError, match="overwrite=True"):
        written(pair())
    assert (tmp_path / "report.html").read_text() == "mine"
