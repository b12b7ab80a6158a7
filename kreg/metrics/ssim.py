"""The structural similarity of images."""

import numpy as np
from keras import ops
from scipy.ndimage import minimum_filter
from skimage.metrics import structural_similarity

from kreg.ops.coordinates import check_image, check_same_size


def ssim(fixed, warped, mask=None, *, data_range: float, window: int = 7) -> np.ndarray:
    """SSIM = mean of (2 m_f m_w + c1)(2 s_fw + c2) / ((m_f^2 + m_w^2 + c1)(s_f^2 + s_w^2 + c2)).

    Means m, variances s^2 and covariance s_fw are those of the window around each voxel (Wang et
    al., IEEE Transactions on Image Processing 2004), computed by scikit-image; channels are
    averaged. 1 is best.

    Args:
        fixed, warped: ``(batch, *spatial, channels)``, floating.
        mask: ``(batch, *spatial, 1)``, above 0 where voxels count: the mean is over the windows
            that lie inside. None for all of the image.
        data_range: largest minus smallest possible value, 1 for images in [0, 1]: it sets c1, c2.
        window: odd length in voxels, no longer than the images.

    Returns:
        ``(batch,)``, at most 1; NaN where no window lies inside the mask.

    Raises:
        ValueError: if shapes differ, the images are not floating, `data_range` is not positive,
            or the window is even or longer than the images.
    """
    fixed, warped = check_image(fixed, "fixed"), check_image(warped, "warped")
    check_same_size(fixed, warped)
    if not data_range > 0:
        raise ValueError(
            f"Expected `data_range` > 0, such as 1 for images in [0, 1]. Received: {data_range}."
        )
    shortest = min(fixed.shape[1:-1])
    if window % 2 == 0 or not 3 <= window <= shortest:
        raise ValueError(
            f"Expected `window` odd, at least 3 and at most {shortest}, the shortest axis of the "
            f"images. Received: {window}."
        )
    images = [ops.convert_to_numpy(ops.cast(x, "float32")) for x in (fixed, warped)]
    mask = np.ones((*fixed.shape[:-1], 1)) if mask is None else ops.convert_to_numpy(mask)
    if mask.shape != (*fixed.shape[:-1], 1):
        raise ValueError(
            f"Expected a mask of shape {(*fixed.shape[:-1], 1)}. Received: {mask.shape}."
        )
    return np.array(
        [
            _mean(f, w, inside, float(data_range), window)
            for f, w, inside in zip(*images, mask, strict=True)
        ],
        "float32",
    )


def _mean(fixed, warped, mask, data_range, window) -> float:
    """The mean over the windows, beyond the image or the mask none."""
    _, values = structural_similarity(
        fixed, warped, win_size=window, data_range=data_range, channel_axis=-1, full=True
    )
    whole = minimum_filter(mask[..., 0] > 0, window, mode="constant", cval=0)
    return float(values[whole].mean()) if whole.any() else float("nan")
