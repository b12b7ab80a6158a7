"""What kreg is compared with: functions (fixed, moving, model) -> voxel matrix fixed -> moving.

Images are ``(H, W, C)`` float32. Libraries that take one channel get the luminance. Each function
imports what it needs: a worker's environment may hold no other library. Settings are the same for
all cases: elastix's and ANTs's own defaults; elsewhere what is said at the function.
"""

import os

import numpy as np

from benchmarks.pairwise.cases import AFFINE, Points, grey, swap_axes


def identity(fixed, moving, model: str) -> np.ndarray:
    """The error before registration."""
    return np.eye(3)


def _pyramid(image, smallest: int) -> list[np.ndarray]:
    """Finest first; pixel i of a level lies at 2 i of the one before."""
    import cv2

    levels = [image]
    while min(levels[-1].shape) >= 2 * smallest:
        levels.append(cv2.pyrDown(levels[-1]))
    return levels


def _ecc(fixed, moving, model: str) -> np.ndarray:
    import cv2

    motion = cv2.MOTION_AFFINE if model == AFFINE else cv2.MOTION_HOMOGRAPHY
    rows = 2 if model == AFFINE else 3
    double = np.diag([2.0, 2.0, 1.0])
    matrix = np.eye(3)
    levels = list(zip(_pyramid(fixed, 48), _pyramid(moving, 48), strict=False))
    for number, (f, m) in reversed(list(enumerate(levels))):
        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 200, 1e-6)
        start = matrix[:rows].astype("float32")
        _, found = cv2.findTransformECC(f, m, start, motion, criteria, None, 5)
        matrix[:rows] = found
        if number:
            matrix = double @ matrix @ np.linalg.inv(double)
    return swap_axes(matrix / matrix[2, 2])


def ecc(fixed, moving, model: str) -> np.ndarray:
    """OpenCV's enhanced correlation coefficient, coarse to fine from 48-95 px, blur of 5."""
    return _ecc(grey(fixed), grey(moving), model)


def ecc_gradient(fixed, moving, model: str) -> np.ndarray:
    """The same on gradient magnitudes, Gaussian of 1 px."""
    import cv2

    def magnitude(image):
        image = cv2.GaussianBlur(grey(image), (0, 0), 1.0)
        return cv2.magnitude(*(cv2.Scharr(image, cv2.CV_32F, *d) for d in ((1, 0), (0, 1))))

    return _ecc(magnitude(fixed), magnitude(moving), model)


def sift_matches(fixed, moving) -> Points:
    """SIFT matches by the ratio test (.8) on the green channel, contrast threshold .01."""
    import cv2

    detector = cv2.SIFT_create(contrastThreshold=0.01, enable_precise_upscale=True)

    def features(image):
        green = image[..., min(1, image.shape[-1] - 1)]
        values = np.round(255 * np.clip(green, 0, 1)).astype("uint8")
        keys, descriptors = detector.detectAndCompute(np.ascontiguousarray(values), None)
        return np.array([key.pt for key in keys]).reshape(-1, 2)[:, ::-1], descriptors

    (f, f_features), (m, m_features) = features(fixed), features(moving)
    if min(len(f), len(m)) < 2:
        return Points(np.zeros((0, 2)), np.zeros((0, 2)))
    pairs = cv2.BFMatcher().knnMatch(f_features, m_features, k=2)
    good = [best for best, second in pairs if best.distance < 0.8 * second.distance]
    return Points(f[[match.queryIdx for match in good]], m[[match.trainIdx for match in good]])


def sift(fixed, moving, model: str) -> np.ndarray:
    """OpenCV's SIFT and RANSAC at 3 px, refined on the inliers as OpenCV does."""
    import cv2

    points = sift_matches(fixed, moving)
    cv2.setRNGSeed(0)
    if model == AFFINE:
        found, _ = cv2.estimateAffine2D(*points, ransacReprojThreshold=3.0, maxIters=5000)
        return np.vstack([found, [0, 0, 1]])
    found, _ = cv2.findHomography(*points, cv2.RANSAC, 3.0, maxIters=5000)
    return found


def _matrix_of(transform) -> np.ndarray:
    """The matrix of an affine function on points, from three of its values."""
    origin, first, second = (np.array(transform(p)) for p in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
    return np.vstack([np.c_[first - origin, second - origin, origin], [0, 0, 1]])


def simpleitk(fixed, moving, model: str) -> np.ndarray:
    """SimpleITK: Mattes mutual information, 50 bins, 20 % of the pixels, over four levels.

    Regular-step gradient descent, steps scaled by physical shifts, from the centred moments. (The
    plain gradient descent of its examples stops early: on three mono and three remapped pairs it
    ended at 4-80 px, this one below .04 px.)
    """
    import SimpleITK as sitk

    f, m = (sitk.GetImageFromArray(grey(image)) for image in (fixed, moving))
    start = sitk.CenteredTransformInitializer(
        f, m, sitk.AffineTransform(2), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0,
        minStep=1e-4,
        numberOfIterations=300,
        gradientMagnitudeTolerance=1e-8,
        estimateLearningRate=method.EachIteration,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([8, 4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4, 2, 1, 0])
    method.SetInitialTransform(start, inPlace=False)
    found = method.Execute(f, m)
    return swap_axes(_matrix_of(found.TransformPoint))


def elastix(fixed, moving, model: str) -> np.ndarray:
    """elastix: its default affine map of 4 levels, AdvancedMattesMutualInformation."""
    import itk

    f, m = (itk.image_from_array(np.ascontiguousarray(grey(x))) for x in (fixed, moving))
    parameters = itk.ParameterObject.New()
    affine = parameters.GetDefaultParameterMap("affine", 4)
    affine["WriteResultImage"] = ["false"]
    affine["RandomSeed"] = ["1"]
    parameters.AddParameterMap(affine)
    _, found = itk.elastix_registration_method(
        f, m, parameter_object=parameters, log_to_console=False
    )
    numbers = np.array([float(x) for x in found.GetParameter(0, "TransformParameters")])
    centre = np.array([float(x) for x in found.GetParameter(0, "CenterOfRotationPoint")])
    linear, shift = numbers[:4].reshape(2, 2), numbers[4:]
    return swap_axes(_matrix_of(lambda point: linear @ (point - centre) + shift + centre))


def ants(fixed, moving, model: str) -> np.ndarray:
    """ANTs: `registration` of type "Affine" with Mattes mutual information, as it comes."""
    import ants as library

    # It takes the first axis of an array as its first coordinate: points are (row, column).
    f, m = (library.from_numpy(np.ascontiguousarray(grey(x))) for x in (fixed, moving))
    done = library.registration(
        f, m, type_of_transform="Affine", aff_metric="mattes", random_seed=1, singleprecision=False
    )
    paths = done["fwdtransforms"]
    transform = library.read_transform(paths[0])
    matrix = _matrix_of(lambda point: transform.apply_to_point(list(point)))
    for path in {*paths, *done["invtransforms"]}:
        os.remove(path)
    return matrix
