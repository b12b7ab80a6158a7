"""What kreg is compared with: functions (fixed, moving) -> displacement ``(*spatial, D)``, voxels.

Each imports what it needs: a worker's environment may hold no other library.
"""

import os
import tempfile

import numpy as np


def _to_voxels(vectors) -> np.ndarray:
    """Turn vectors (x, y[, z]) of unit spacing into (row, column) or (depth, row, column)."""
    return np.ascontiguousarray(vectors[..., ::-1], "float32")


def nothing(fixed, moving):
    """The error before registration."""
    return np.zeros((*fixed.shape, fixed.ndim), "float32")


def _elastix(fixed, moving, metric: str, spacing: int):
    import itk

    f, m = (itk.image_from_array(np.ascontiguousarray(x, "float32")) for x in (fixed, moving))
    parameters = itk.ParameterObject.New()
    spline = parameters.GetDefaultParameterMap("bspline", 4)
    spline["FinalGridSpacingInPhysicalUnits"] = [str(spacing)]
    spline["Metric"] = [metric, "TransformBendingEnergyPenalty"]
    spline["MaximumNumberOfIterations"] = ["300"]
    spline["AutomaticTransformInitialization"] = ["false"]
    spline["WriteResultImage"] = ["false"]
    spline["RandomSeed"] = ["1"]
    parameters.AddParameterMap(spline)
    _, found = itk.elastix_registration_method(
        f, m, parameter_object=parameters, log_to_console=False, number_of_threads=1
    )
    with tempfile.TemporaryDirectory() as folder:
        field = itk.transformix_deformation_field(m, found, output_directory=folder)
    return _to_voxels(np.asarray(field))


def elastix_mattes(fixed, moving):
    """elastix: B-splines every 16 voxels, four levels of 300 iterations, Mattes information, and
    its default penalty on bending.
    """
    return _elastix(fixed, moving, "AdvancedMattesMutualInformation", 16)


def elastix_ncc(fixed, moving):
    """elastix: the same by correlation."""
    return _elastix(fixed, moving, "AdvancedNormalizedCorrelation", 16)


def elastix_ncc_fine(fixed, moving):
    """elastix: the same, a control point every 8 voxels."""
    return _elastix(fixed, moving, "AdvancedNormalizedCorrelation", 8)


def demons(fixed, moving):
    """SimpleITK: diffeomorphic demons, sigma 1.5, 50 steps on each of four levels, histograms
    matched first.
    """
    return _demons(fixed, moving, 1.5, 50)


def smooth_demons(fixed, moving):
    """SimpleITK: the same with sigma 3 and 200 steps."""
    return _demons(fixed, moving, 3.0, 200)


def _demons(fixed, moving, sigma: float, steps: int):
    import SimpleITK as sitk

    f, m = (sitk.GetImageFromArray(np.ascontiguousarray(x, "float32")) for x in (fixed, moving))
    m = sitk.HistogramMatching(m, f, 256, 15)
    method = sitk.DiffeomorphicDemonsRegistrationFilter()
    method.SetNumberOfIterations(steps)
    method.SetStandardDeviations(sigma)
    field = None
    for factor in (8, 4, 2, 1):
        if min(fixed.shape) // factor < 8:
            continue
        small = [
            sitk.Shrink(sitk.SmoothingRecursiveGaussian(x, 0.5 * factor), [factor] * fixed.ndim)
            if factor > 1
            else x
            for x in (f, m)
        ]
        if field is not None:
            field = sitk.Resample(field, small[0], sitk.Transform(), sitk.sitkLinear, 0.0)
            field = sitk.Cast(field, sitk.sitkVectorFloat64)
            field = method.Execute(*small, field)
        else:
            field = method.Execute(*small)
    return _to_voxels(sitk.GetArrayFromImage(field))


def ilk(fixed, moving):
    """scikit-image: iterative Lucas-Kanade, radius 15."""
    from skimage.registration import optical_flow_ilk

    return np.stack(optical_flow_ilk(fixed, moving, radius=15, num_warp=20), -1)


def dis(fixed, moving):
    """OpenCV: dense inverse search, its medium preset."""
    import cv2

    f, m = (np.round(255 * np.clip(x, 0, 1)).astype("uint8") for x in (fixed, moving))
    return _to_voxels(cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(f, m, None))


def _ants(fixed, moving, **options):
    import ants

    # It takes the first axis of an array as its first coordinate.
    f, m = (ants.from_numpy(np.ascontiguousarray(x, "float32")) for x in (fixed, moving))
    found = ants.registration(f, m, random_seed=1, **options)
    warp = next(path for path in found["fwdtransforms"] if path.endswith("Warp.nii.gz"))
    field = ants.image_read(warp).numpy().reshape(*fixed.shape, fixed.ndim)
    for path in {*found["fwdtransforms"], *found["invtransforms"]}:
        os.remove(path)
    # Vectors are physical, of an image whose axes are those of the array.
    return field.astype("float32")


def ants_mean_squares(fixed, moving):
    """ANTs: SyNOnly by mean squares, 100, 70 and 50 iterations (its default, 40, 20 and 0, which
    leaves the finest level out, ends at a correlation of .90 instead of .97).
    """
    return _ants(fixed, moving, type_of_transform="SyNOnly", syn_metric="meansquares",
                 reg_iterations=(100, 70, 50), initial_transform="Identity")  # fmt: skip


def ants_cc(fixed, moving):
    """ANTs: SyNOnly by local correlation, 100, 70, 50 and 20 iterations."""
    return _ants(fixed, moving, type_of_transform="SyNOnly", syn_metric="CC", syn_sampling=4,
                 reg_iterations=(100, 70, 50, 20), initial_transform="Identity")  # fmt: skip
