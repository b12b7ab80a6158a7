"""The zoo: functions that return a functional `RegistrationModel`, image shape first."""

from kreg.models.affine_dense import affine_dense
from kreg.models.affine_net import affine_net
from kreg.models.ddim import (
    GradientMagnitudes,
    GreyValues,
    MatchingStage,
    NetworkStep,
    SmoothStep,
    ddim,
)
from kreg.models.dirnet import dirnet
from kreg.models.encoder_decoder import encoder_decoder
from kreg.models.global_to_local import (
    CARDIAC_128,
    DRAWINGS,
    LEAN,
    MNIST_64,
    TISSUE,
    ConvolutionalRefinement,
    FlowNetSize,
    UnrolledRefinement,
    global_to_local,
)
from kreg.models.heads import DenseHead, VelocityHead
from kreg.models.two_pass import two_pass
from kreg.models.voxelmorph import voxelmorph

__all__ = [
    "CARDIAC_128",
    "DRAWINGS",
    "LEAN",
    "MNIST_64",
    "TISSUE",
    "ConvolutionalRefinement",
    "DenseHead",
    "FlowNetSize",
    "GradientMagnitudes",
    "GreyValues",
    "MatchingStage",
    "NetworkStep",
    "SmoothStep",
    "UnrolledRefinement",
    "VelocityHead",
    "affine_dense",
    "affine_net",
    "ddim",
    "dirnet",
    "encoder_decoder",
    "global_to_local",
    "two_pass",
    "voxelmorph",
]
