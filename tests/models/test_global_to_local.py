import keras
import numpy as np
import pytest
from keras import ops

from kreg.layers import RefinementStage
from kreg.losses import NCC, Charbonnier, Diffusion, WeightedSum
from kreg.models import (
    CARDIAC_128,
    MNIST_64,
    ConvolutionalRefinement,
    FlowNetSize,
    UnrolledRefinement,
    global_to_local,
)
from tests.models.pairs import images

SMALL = FlowNetSize(encoder=((), ((4, 3),), ((6, 3),)), decoder=(4,))
FEW = UnrolledRefinement((RefinementStage(2, 0.5, 1), RefinementStage(2, 0, 1)))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("shape", [(16, 18), (8, 10, 12)], ids=str)
@pytest.mark.parametrize("refinement", [FEW, ConvolutionalRefinement((4,))])
def test_identity_at_start_for_an_image_and_itself(shape, refinement):
    model = global_to_local((*shape, 1), size=SMALL, refinement=refinement)
    data = images(shape)
    alike = {"moving": data["fixed"], "fixed": data["fixed"]}
    found = model.predict(alike, verbose=0)
    assert set(found) == {
        "warped", "displacement", "warped_coarse", "coarse_displacement", "saliency",
        "warped_trusted",
    }  # fmt: skip
    assert found["displacement"].shape[1:] == (*shape, len(shape))
    np.testing.assert_array_equal(found["coarse_displacement"], 0)
    assert np.abs(found["displacement"]).max() < 1e-2
    np.testing.assert_allclose(found["saliency"], 1, atol=1e-3)
    without = global_to_local((*shape, 1), size=SMALL, refinement=refinement, saliency=None)
    assert "saliency" not in without.output


@pytest.mark.usefixtures("uncompiled")
def test_training_reaches_the_network_through_the_refinement():
    shape = (16, 18)
    model = global_to_local((*shape, 1), size=SMALL, refinement=FEW)
    trusted = WeightedSum([NCC(), Charbonnier()], [1.0, 1.0])
    model.compile(
        keras.optimizers.Adam(1e-2), loss={"warped_trusted": trusted, "displacement": Diffusion()}
    )
    before = [ops.convert_to_numpy(w).copy() for w in model.trainable_variables]
    data = images(shape)
    losses = model.fit(data, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    moved = [
        np.abs(ops.convert_to_numpy(w) - b).max() > 0
        for w, b in zip(model.trainable_variables, before, strict=True)
    ]
    assert np.mean(moved) > 0.9


@pytest.mark.parametrize("size", [MNIST_64, CARDIAC_128], ids=["digits", "hearts"])
def test_the_originals_can_be_built(size):
    model = global_to_local(
        (64, 64, 1), size=size, refinement=ConvolutionalRefinement((128, 64, 32))
    )
    assert model.output["coarse_displacement"].shape[1:] == (64, 64, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"encoder": (((4, 3),),), "decoder": (4,)},
        {"encoder": ((), ()), "decoder": (4,)},
        {"encoder": ((), ((4, 3),)), "decoder": (4, 4)},
    ],
)
def test_refuses_networks_that_do_not_exist(options):
    with pytest.raises(ValueError, match=r"Expected an encoder of two or more levels"):
        FlowNetSize(**options)
