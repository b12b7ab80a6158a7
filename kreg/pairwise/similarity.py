"""Pointwise similarities: the log-ratio T(f, m) that says how well two values go together.

For a joint density p, T(f, m) = log p(f, m) - log p(f) p(m), whose mean over the joint is the
mutual information. Its slope at each sample is what a transform climbs; how T is found (a
histogram, a trained network, a Gaussian) is all that similarities differ in.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from kreg import backend
from kreg.losses.mine import MINE, Critic, donsker_varadhan
from kreg.losses.mutual_information import MutualInformation
from kreg.losses.ncc import NCC
from kreg.ops.histogram import joint_counts
from kreg.pairwise.schedule import CoarseToFine, Schedule

#: Images come to a similarity with values in [-LIMIT, LIMIT].
LIMIT = 1.0


class LogRatio:
    """T(f, m) of sampled values, with what it has to learn.

    Attributes:
        grey: whether channels are averaged before they come here.
        trained: whether T has weights, which ``objective`` trains. Samples then come in random
            order, for others neighbours may come in turn.
        any_length: whether T takes batches and samples of unknown number (None in shapes), so that
            TensorFlow needs one graph alone.
        damping: of Fisher scoring, unless the optimizer says otherwise.
        schedule: of a registration, unless the user says otherwise.
    """

    grey = False
    trained = False
    any_length = False
    damping = 1e-3
    schedule: Schedule = CoarseToFine()

    def initial(self, pairs: int, fixed_channels: int, moving_channels: int, seed: int) -> list:
        """Return the weights to start from: none."""
        return []

    def objective(self, weights: list, fixed, moving, inside):
        """Return ``(batch,)``, to be minimised by the weights."""
        raise NotImplementedError(f"{type(self).__name__} has no weights to train.")

    def train_state(self, weights: list) -> list:
        """Return the state of Adam for fresh weights: the steps done, and two moments of each."""
        if not self.trained:
            return []
        zeros = [ops.zeros_like(weight) for weight in weights]
        return [ops.zeros(()), zeros, zeros]

    def learn(self, weights: list, state: list, rate, fixed, moving, inside):
        """Return weights and state after one step of Adam, and the similarity before it."""

        def total(weights):
            values = self.objective(weights, fixed, moving, inside)
            return ops.sum(values), values

        (_, values), gradients = backend.value_and_gradients(total, weights)
        # Adam (Kingma & Ba, 2015), as a function of its state, which Keras's is not everywhere.
        first, second = 0.9, 0.99
        count, means, squares = state
        count = count + 1
        means = [first * m + (1 - first) * g for m, g in zip(means, gradients, strict=True)]
        squares = [
            second * v + (1 - second) * g**2 for v, g in zip(squares, gradients, strict=True)
        ]
        rate = rate * ops.sqrt(1 - second**count) / (1 - first**count)
        moved = [
            w - rate * m / (ops.sqrt(v) + 1e-7)
            for w, m, v in zip(weights, means, squares, strict=True)
        ]
        return moved, [count, means, squares], -values

    def log_ratio(self, weights: list, fixed, moving, inside):
        """Return T ``(batch, n)``, differentiable in `moving`, and the similarity ``(batch,)``.

        Args:
            weights: as `initial` returns them.
            fixed, moving: values at the samples, ``(batch, n, channels)``.
            inside: ``(batch, n)``: the weight of each sample, 0 outside the moving image.
        """
        raise NotImplementedError(f"{type(self).__name__} must define log_ratio().")

    def descent(self, weights: list, fixed, moving, inside):
        """Return a loss ``(batch,)`` whose gradient climbs, and the similarity ``(batch,)``.

        The loss is minus the mean of T; the histogram or the Gaussian behind T is held fixed,
        which changes nothing to first order.
        """
        ratio, similarity = self.log_ratio(weights, fixed, moving, inside)
        total = ops.maximum(ops.sum(inside, axis=1), 1.0)
        return -ops.sum(ratio * inside, axis=1) / total, similarity


@dataclass(frozen=True)
class HistogramRatio(LogRatio):
    """T from a Parzen joint histogram: hat-shaped bins, smoothed by a Gaussian.

    Args:
        bins: number of bins for each image.
        sigma: standard deviation of the Gaussian in bins.
    """

    bins: int = 48
    sigma: float = 1.5

    grey = True
    any_length = True

    def __post_init__(self):
        if self.bins < 2 or self.sigma < 0:
            raise ValueError(
                f"Expected at least 2 bins and a sigma of at least 0. Received: {self}."
            )

    def log_ratio(self, weights, fixed, moving, inside):
        """Return T looked up in the table of the samples at hand, and their information."""
        f, m = self._position(fixed), self._position(moving)
        kernel = _smoothing(self.bins, self.sigma)
        f = ops.stop_gradient(f)
        joint = joint_counts(f, ops.stop_gradient(m), inside, self.bins)
        joint = ops.matmul(ops.matmul(kernel, joint), kernel.T)
        joint = joint / ops.maximum(ops.sum(joint, axis=(1, 2), keepdims=True), 1e-6)
        independent = ops.sum(joint, axis=2, keepdims=True) * ops.sum(joint, axis=1, keepdims=True)
        table = ops.log((joint + 1e-9) / (independent + 1e-9))
        information = ops.sum(joint * table, axis=(1, 2))
        return _look_up(table, f, m), information

    def bias(self, samples):
        """Return the information that this many independent samples seem to have: (b - 1)^2 / 2n.

        b is the number of bins that smoothing leaves independent.
        """
        bins = self.bins / max(2 * np.sqrt(np.pi) * self.sigma, 1)
        return (bins - 1) ** 2 / (2 * samples)

    def _position(self, values):
        scaled = (values[..., 0] + LIMIT) * ((self.bins - 1) / (2 * LIMIT))
        return ops.clip(scaled, 0.0, self.bins - 1.001)


@functools.lru_cache
def _smoothing(bins: int, sigma: float) -> np.ndarray:
    if sigma == 0:
        return np.eye(bins, dtype="float32")
    offset = np.arange(bins)[:, None] - np.arange(bins)
    kernel = np.exp(-0.5 * (offset / sigma) ** 2)
    return (kernel / kernel.sum(0)).astype("float32")


def _look_up(table, f, m):
    """Bilinear interpolation in each table of the batch, ``(batch, n)``."""
    bins = table.shape[1]
    rows = ops.reshape(table, (-1, 1))
    lower = [ops.cast(ops.stop_gradient(x), "int32") for x in (f, m)]
    start = ops.arange(ops.shape(table)[0], dtype="int32")[:, None] * (bins * bins)
    index = start + lower[0] * bins + lower[1]
    u, v = (x - ops.cast(i, "float32") for x, i in zip((f, m), lower, strict=True))

    def corner(offset):
        return ops.take(rows, index + offset, axis=0)[..., 0]

    low, right, down, both = (corner(offset) for offset in (0, 1, bins, bins + 1))
    low, high = low + (right - low) * v, down + (both - down) * v
    return low + (high - low) * u


@dataclass(frozen=True)
class GaussianRatio(LogRatio):
    """T of jointly Gaussian values: -log(1 - r^2)/2 - (r^2 (f^2 + m^2) - 2 r f m) / (2 (1 - r^2)).

    f and m standardised, r their correlation: climbing it is least squares after the best linear
    map between the grey values. The similarity is r itself.
    """

    grey = True
    any_length = True

    def log_ratio(self, weights, fixed, moving, inside):
        """Return T and the correlation."""
        total = ops.maximum(ops.sum(inside, axis=1, keepdims=True), 1e-6)

        def mean(x):
            return ops.sum(x * inside, axis=1, keepdims=True) / total

        f, m = fixed[..., 0], moving[..., 0]
        still = ops.stop_gradient(m)
        centre, spread = mean(still), ops.sqrt(mean((still - mean(still)) ** 2) + 1e-12)
        f = f - mean(f)
        f = f * ops.rsqrt(mean(f**2) + 1e-12)
        r = ops.clip(mean(f * (still - centre) / spread), -0.9999, 0.9999)
        m = (m - centre) / spread
        rest = 1 - r**2
        ratio = -0.5 * ops.log(rest) - (r**2 * (f**2 + m**2) - 2 * r * f * m) / (2 * rest)
        return ratio, r[:, 0]


@functools.lru_cache
def _critic(hidden, activation, pairs, fixed_channels, moving_channels) -> Critic:
    critic = Critic(hidden=hidden, activation=activation, copies=pairs)
    critic.build((pairs, None, fixed_channels), (pairs, None, moving_channels))
    return critic


@dataclass(frozen=True)
class CriticRatio(LogRatio):
    """T as a network trained by the Donsker-Varadhan bound, one for each pair (MINE).

    Args:
        hidden: widths of the hidden layers.
        activation: name of their activation.
    """

    hidden: Sequence[int] = (32, 32)
    activation: str = "tanh"

    trained = True
    damping = 1e-2
    schedule = CoarseToFine(
        steps=(20, 12, 36), samples=(4096, 8192, 12288), pretraining=30, rates=(1e-2, 6e-4)
    )

    def __post_init__(self):
        object.__setattr__(self, "hidden", tuple(self.hidden))  # hashable: compiled code is kept

    def initial(self, pairs, fixed_channels, moving_channels, seed):
        """Return freshly drawn weights of `pairs` networks."""
        critic = _critic(self.hidden, self.activation, pairs, fixed_channels, moving_channels)
        generator = np.random.default_rng(seed)
        weights = []
        for variable in critic.trainable_variables:
            shape = tuple(variable.shape)
            fan = sum(shape[-2:]) if len(shape) == 3 and shape[-2] > 1 else 0
            limit = np.sqrt(6 / fan) if fan else 0.0
            one = generator.uniform(-limit, limit, shape[1:]).astype(
                "float32"
            )  # alike in all pairs
            weights.append(ops.convert_to_tensor(np.broadcast_to(one, shape).copy()))
        return weights

    def _values(self, weights, fixed, moving):
        critic = _critic(
            self.hidden, self.activation, fixed.shape[0], fixed.shape[-1], moving.shape[-1]
        )
        values, _ = critic.stateless_call(weights, [], 2 * fixed, 2 * moving)
        return values

    def _bound(self, weights, fixed, moving, inside):
        joint = self._values(weights, fixed, moving)
        # Samples come in random order: half a turn makes pairs that belong to no one place.
        half = fixed.shape[1] // 2
        other, also = ops.roll(moving, half, axis=1), ops.roll(inside, half, axis=1)
        marginal = self._values(weights, fixed, other)
        return joint, donsker_varadhan(joint, marginal, inside, inside * also)

    def objective(self, weights, fixed, moving, inside):
        """Return the negative Donsker-Varadhan bound of each pair."""
        return -self._bound(weights, fixed, moving, inside)[1]

    def log_ratio(self, weights, fixed, moving, inside):
        """Return the network's T and its mean: the bound comes with the training step."""
        joint = self._values(weights, fixed, moving)
        total = ops.maximum(ops.sum(inside, axis=1), 1.0)
        return joint, ops.stop_gradient(ops.sum(joint * inside, axis=1) / total)

    def descent(self, weights, fixed, moving, inside):
        """Return the negative bound, for transform and weights alike, and the bound."""
        bound = self._bound(weights, fixed, moving, inside)[1]
        return -bound, ops.stop_gradient(bound)


def as_log_ratio(similarity) -> LogRatio:
    """Return the log-ratio that goes with a similarity of `register`.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(similarity, LogRatio):
        return similarity
    if isinstance(similarity, MutualInformation):
        return HistogramRatio(similarity.bins, similarity.sigma)
    if isinstance(similarity, MINE):
        critic = similarity.estimator.critic
        return CriticRatio(critic.hidden, keras.activations.serialize(critic.activation))
    if isinstance(similarity, NCC):
        return GaussianRatio()
    raise ValueError(
        "Expected `similarity` to be a kreg.pairwise.LogRatio, or one of the losses "
        f"MutualInformation, MINE, NCC. Received: {similarity!r}."
    )
