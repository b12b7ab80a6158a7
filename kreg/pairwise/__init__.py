"""Pairwise registration: `register`, and the objects that it is put together from."""

from kreg.pairwise.dense import GaussNewton
from kreg.pairwise.fisher import FisherScoring
from kreg.pairwise.preparation import (
    Channels,
    EdgeStrength,
    LocalNormalisation,
    Preparation,
    Standardisation,
    Unchanged,
    field_of_view,
)
from kreg.pairwise.register import register
from kreg.pairwise.result import Registration
from kreg.pairwise.samplers import EdgeSampler, Sampler, UniformSampler
from kreg.pairwise.schedule import AllLevels, CoarseToFine, Schedule, Stage
from kreg.pairwise.search import MultiStart
from kreg.pairwise.similarity import CriticRatio, GaussianRatio, HistogramRatio, LogRatio

__all__ = [
    "AllLevels",
    "Channels",
    "CoarseToFine",
    "CriticRatio",
    "EdgeSampler",
    "EdgeStrength",
    "FisherScoring",
    "GaussNewton",
    "GaussianRatio",
    "HistogramRatio",
    "LocalNormalisation",
    "LogRatio",
    "MultiStart",
    "Preparation",
    "Registration",
    "Sampler",
    "Schedule",
    "Stage",
    "Standardisation",
    "Unchanged",
    "UniformSampler",
    "field_of_view",
    "register",
]
