"""The zoo: functions that return a functional `RegistrationModel`, image shape first."""

from kreg.models.affine_dense import affine_dense
from kreg.models.affine_net import affine_net
from kreg.models.dirnet import dirnet
from kreg.models.encoder_decoder import encoder_decoder
from kreg.models.heads import DenseHead, VelocityHead
from kreg.models.two_pass import two_pass
from kreg.models.voxelmorph import voxelmorph

__all__ = [
    "DenseHead",
    "VelocityHead",
    "affine_dense",
    "affine_net",
    "dirnet",
    "encoder_decoder",
    "two_pass",
    "voxelmorph",
]
