"""The zoo: functions that return a functional `RegistrationModel`, image shape first."""

from kreg.models.encoder_decoder import encoder_decoder
from kreg.models.heads import DenseHead, VelocityHead
from kreg.models.two_pass import two_pass

__all__ = ["DenseHead", "VelocityHead", "encoder_decoder", "two_pass"]
