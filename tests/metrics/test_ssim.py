import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from kreg.metrics import ssim


def slow_ssim(f, w, data_range, window):
    """The equation, with SciPy's box filter and the sample covariance of a window."""
    n = window**f.ndim
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def mean(x):
        return uniform_filter(x, window)

    mf, mw = mean(f), mean(w)
    sf, sw, sfw = (mean(a) * n / (n - 1) for a in (f * f, w * w, f * w))
    sf, sw, sfw = sf - mf**2 * n / (n - 1), sw - mw**2 * n / (n - 1), sfw - mf * mw * n / (n - 1)
    s = (2 * mf * mw + c1) * (2 * sfw + c2) / ((mf**2 + mw**2 + c1) * (sf + sw + c2))
    inner = (slice(window // 2, -(window // 2)),) * f.ndim
    return s[inner].mean()


@pytest.mark.parametrize("shape", [(16, 18), (9, 10, 11)])
def test_agrees_with_the_equation(shape):
    fixed, warped = np.random.default_rng(0).random((2, 3, *shape, 1))
    warped = 0.6 * fixed + 0.4 * warped
    expected = [slow_ssim(f[..., 0], w[..., 0], 2.0, 5) for f, w in zip(fixed, warped, strict=True)]
    fixed, warped = fixed.astype("float32"), warped.astype("float32")
    values = ssim(fixed, warped, data_range=2.0, window=5)
    assert values.shape == (3,)
    np.testing.assert_allclose(values, expected, atol=1e-4)


def test_equal_images_are_1_and_channels_are_averaged():
    x, y = np.random.default_rng(0).random((2, 1, 12, 12, 1), "float32")
    assert ssim(x, x, data_range=1.0) == pytest.approx([1])
    both = np.concatenate([x, x], -1), np.concatenate([x, y], -1)
    expected = (1 + ssim(x, y, data_range=1.0)) / 2
    np.testing.assert_allclose(ssim(*both, data_range=1.0), expected, atol=1e-5)


def test_only_windows_within_the_mask_count():
    x, y = np.random.default_rng(0).random((2, 1, 12, 14, 1), "float32")
    mask = np.zeros((1, 12, 14, 1), "float32")
    mask[:, 2:11, 3:12] = 1
    expected = ssim(x[:, 2:11, 3:12], y[:, 2:11, 3:12], data_range=1.0, window=5)
    np.testing.assert_allclose(ssim(x, y, mask, data_range=1.0, window=5), expected, atol=1e-5)
    assert np.isnan(ssim(x, y, 0 * mask, data_range=1.0, window=5)).all()
    with pytest.raises(ValueError, match="mask of shape"):
        ssim(x, y, mask[:, :6], data_range=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_range": 0}, "data_range"),
        ({"data_range": 1.0, "window": 4}, "odd"),
        ({"data_range": 1.0, "window": 13}, "at most 8"),
    ],
)
def test_refuses(options, message):
    x = np.zeros((1, 12, 8, 1), "float32")
    with pytest.raises(ValueError, match=message):
        ssim(x, x, **options)
