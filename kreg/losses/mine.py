"""MINE: mutual information by a network that is trained beside the transform."""

import itertools
import math

import keras
from keras import ops

from kreg.losses.image_loss import ImageLoss
from kreg.ops.coordinates import check_image, check_same_size
from kreg.ops.intensity import TINY, standardise, voxel_weights

#: Standardised grey values are clipped here: a few outliers would drive the network.
_LIMIT = 5.0
#: Below any value of the network.
_LOWEST = -1e30


def _mean(values, weights):
    if weights is None:
        return ops.mean(values, axis=1)
    total = ops.maximum(ops.sum(weights, axis=1), TINY)
    return ops.sum(ops.where(weights > 0, weights * values, 0.0), axis=1) / total


def _log_mean_exp(values, weights):
    """log of the weighted mean of exp(values), ``(batch,)``; 0 where all weights are 0."""
    if weights is None:
        return ops.logsumexp(values, axis=1) - ops.log(ops.cast(ops.shape(values)[1], values.dtype))
    values = ops.where(weights > 0, values, _LOWEST)
    top = ops.stop_gradient(ops.max(values, axis=1, keepdims=True))
    mean = _mean(ops.exp(values - top), weights)
    return ops.where(mean > 0, top[:, 0] + ops.log(ops.maximum(mean, TINY)), 0.0)


@keras.saving.register_keras_serializable("kreg")
def donsker_varadhan(joint, marginal, weights=None, marginal_weights=None):
    """MI >= mean T(joint) - log mean exp T(marginal), with equality for T = log p(f, w)/p(f)p(w).

    The bound holds for any function T and any number added to it cancels (Donsker & Varadhan,
    1983). Large values do not overflow.

    Args:
        joint: T at pairs of values that were seen together, ``(batch, n)``.
        marginal: T at pairs of values drawn apart, ``(batch, n)``.
        weights: None, or weights of the pairs, ``(batch, n)``; where all are 0 the bound is 0.
        marginal_weights: the same for the marginal pairs; None for those of the joint ones.

    Returns:
        ``(batch,)``, nats.
    """
    if marginal_weights is None:
        marginal_weights = weights
    joint, marginal, weights, marginal_weights = (
        None if x is None else ops.cast(x, "float32")
        for x in (joint, marginal, weights, marginal_weights)
    )
    return _mean(joint, weights) - _log_mean_exp(marginal, marginal_weights)


@keras.saving.register_keras_serializable("kreg")
class Critic(keras.layers.Layer):
    """T(f, w): a perceptron on pairs of pixel values, one network or one for each image pair.

    Args:
        hidden: widths of the hidden layers.
        activation: of the hidden layers, a function or its Keras name.
        copies: 1 for one network that all image pairs share, or the number of image pairs, each
            of which then has a network of its own.

    Call arguments:
        fixed: pixel values ``(batch, n, channels)``.
        warped: pixel values ``(batch, n, channels)``, the channels as many or not.

    Raises:
        ValueError: if `copies` is neither 1 nor the number of image pairs.
    """

    def __init__(self, hidden=(32, 32), activation="tanh", copies=1, **kwargs):
        super().__init__(**kwargs)
        self.hidden = tuple(hidden)
        self.activation = keras.activations.get(activation)
        self.copies = copies

    def build(self, fixed_shape, warped_shape):
        """Create a kernel ``(copies, in, out)`` and a bias for each layer."""
        widths = [fixed_shape[-1] + warped_shape[-1], *self.hidden, 1]
        self.kernels, self.biases = [], []
        for k, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            # Glorot's: Keras's own would count the copies among the inputs.
            limit = math.sqrt(6 / (inputs + outputs))
            initializer = keras.initializers.RandomUniform(-limit, limit)
            shape = (self.copies, inputs, outputs)
            self.kernels.append(self.add_weight(shape, initializer, name=f"kernel_{k}"))
        # The last layer has none: what is added to T cancels in the bound.
        for k, width in enumerate(self.hidden):
            shape = (self.copies, 1, width)
            self.biases.append(self.add_weight(shape, "zeros", name=f"bias_{k}"))

    def call(self, fixed, warped):
        """Return T of each pair of values, ``(batch, n)``."""
        if self.copies != 1 and fixed.shape[0] not in (None, self.copies):
            raise ValueError(
                f"Expected as many image pairs as `copies`, {self.copies}; make the critic with "
                f"copies={fixed.shape[0]}, or 1 to share one. Received: {fixed.shape[0]} pairs."
            )
        values = ops.concatenate([fixed, warped], axis=-1)
        *kernels, last = (self._ready(kernel) for kernel in self.kernels)
        for kernel, bias in zip(kernels, self.biases, strict=True):
            values = self.activation(ops.matmul(values, kernel) + bias)
        return ops.matmul(values, last)[..., 0]

    def _ready(self, kernel):
        """The kernel to multiply by: one matrix where it is shared, which is faster."""
        kernel = ops.convert_to_tensor(kernel)
        return kernel[0] if self.copies == 1 else kernel

    def compute_output_shape(self, fixed_shape, warped_shape):
        """Return ``(batch, n)``."""
        return tuple(fixed_shape[:-1])

    def get_config(self):
        """Return the constructor arguments."""
        return {
            **super().get_config(),
            "hidden": self.hidden,
            "activation": keras.activations.serialize(self.activation),
            "copies": self.copies,
        }


def _draw(weights, count: int, seed):
    """Indices ``(batch, count)`` with probability proportional to weights ``(batch, n)``."""
    sums = ops.cumsum(weights, axis=1)
    size = weights.shape[1]
    chosen = keras.random.uniform((ops.shape(weights)[0], count), seed=seed)
    chosen = chosen * (1 - 1e-6) * sums[:, -1:]  # short of the total, whatever the rounding
    last = ops.shape(weights)[1] - 1
    # How many sums are at most `chosen`: bit by bit, as the shapes of a jit must be known.
    index = ops.zeros_like(chosen, dtype="int32")
    for bit in reversed(range(31 if size is None else size.bit_length())):
        higher = index + 2**bit
        below = ops.take_along_axis(sums, ops.minimum(higher - 1, last), axis=1) <= chosen
        index = ops.where(ops.logical_and(higher - 1 <= last, below), higher, index)
    return ops.minimum(index, last)


@keras.saving.register_keras_serializable("kreg")
class InformationEstimator(keras.layers.Layer):
    """mean T(f_i, w_i) - log mean exp T(f_i, w_j), voxels i and j drawn at random, T a `Critic`.

    All state of MINE is here: the network, the state of the random draws and, for the corrected
    gradient, the moving average; whoever tracks this layer tracks all.

    Args:
        critic: a `Critic`.
        samples: voxels drawn in each image pair, afresh in every call.
        bias_corrected: whether the gradient has the moving average in its denominator.
        rate: share of a call in the moving average.

    Call arguments:
        fixed: ``(batch, *spatial, channels)``.
        warped: ``(batch, *spatial, channels)``, the channels as many or not.
        weights: None, or how likely each voxel is drawn, ``(batch, *spatial, 1)``.
    """

    def __init__(self, critic, samples=4096, bias_corrected=False, rate=0.01, **kwargs):
        super().__init__(**kwargs)
        self.critic = critic
        self.samples = samples
        self.bias_corrected = bias_corrected
        self.rate = rate
        self.seed_generator = keras.random.SeedGenerator()

    def build(self, fixed_shape, warped_shape):
        """Build the critic for these numbers of channels."""
        if not self.critic.built:
            self.critic.build((None, None, fixed_shape[-1]), (None, None, warped_shape[-1]))
        if self.bias_corrected:
            # Of exp T, as its logarithm, which does not overflow.
            self.log_average = self.add_weight(
                shape=(self.critic.copies,),
                initializer="zeros",
                trainable=False,
                name="log_average",
            )

    def call(self, fixed, warped, weights=None):
        """Return the mutual information of each pair, ``(batch,)``, nats."""
        fixed, warped = self._samples(fixed, warped, weights)
        # The draws are independent: each with the next one is a pair drawn apart.
        apart = ops.roll(warped, 1, axis=1)
        scores = self.critic(
            ops.concatenate([fixed, fixed], axis=1), ops.concatenate([warped, apart], axis=1)
        )
        joint, marginal = scores[:, : self.samples], scores[:, self.samples :]
        if not self.bias_corrected:
            return donsker_varadhan(joint, marginal)
        return ops.mean(joint, axis=1) - self._corrected(_log_mean_exp(marginal, None))

    def _samples(self, fixed, warped, weights):
        """Pixel values of voxels drawn at random, ``(batch, samples, channels)`` each."""
        batch = ops.shape(fixed)[0]
        fixed, warped = (ops.reshape(x, (batch, -1, x.shape[-1])) for x in (fixed, warped))
        voxels = ops.shape(fixed)[1]
        if weights is None:
            drawn = keras.random.randint(
                (batch, self.samples), 0, voxels, dtype="int32", seed=self.seed_generator
            )
        else:
            weights = ops.reshape(weights, (batch, -1))
            drawn = _draw(weights, self.samples, self.seed_generator)
            inside = weights[..., None] > 0  # what is masked may be NaN, or all there is
            fixed, warped = (ops.where(inside, x, 0.0) for x in (fixed, warped))
        rows = drawn + voxels * ops.arange(batch, dtype="int32")[:, None]

        def taken(values):
            flat = ops.reshape(values, (-1, values.shape[-1]))
            return ops.clip(standardise(ops.take(flat, rows, axis=0)), -_LIMIT, _LIMIT)

        return taken(fixed), taken(warped)

    def _corrected(self, log_mean):
        """log mean exp T as it is, its gradient d mean exp T / moving average of mean exp T."""
        now = ops.stop_gradient(log_mean)
        call = _log_mean_exp(now[None], None) if self.critic.copies == 1 else now
        average = ops.logaddexp(
            self.log_average + math.log(1 - self.rate), call + math.log(self.rate)
        )
        self.log_average.assign(average)
        ratio = ops.exp(now - ops.stop_gradient(average))
        return now + ratio * (log_mean - now)


@keras.saving.register_keras_serializable("kreg")
class MINE(ImageLoss):
    """loss = -MI(fixed, warped): negative, smaller is better; MI = max over T of a lower bound.

    The bound is mean T(f_i, w_i) - log mean exp T(f_i, w_j), and T a small network on the values
    of a pixel of either image, trained to raise it while the model does the same by aligning them
    (Belghazi et al., ICML 2018; Nan et al., MIDL 2020). It compares images of any two modalities,
    with any numbers of channels. Nats; standardised values of voxels drawn afresh in every
    call, so two calls give two estimates.

    The network must be trained: `kreg.RegistrationModel` does so when compiled with this loss,
    and saves it; any other Keras model does once ``loss.adopt(model)`` is called, after it is
    loaded from a file, too. By hand, add ``loss.estimator.trainable_variables`` to those of the
    optimiser and maximise ``loss.similarity(fixed, warped)``.

    Args:
        channels: of the fixed and of the warped image.
        hidden: widths of the network's hidden layers.
        samples: voxels drawn in each pair.
        bias_corrected: whether a moving average replaces the mean of exp T of each call in the
            denominator of its gradient, which few samples would bias. The value is the same.
        rate: share of a call in the moving average, above 0 and below 1.

    Call arguments:
        y_true: fixed images, ``(batch, *spatial, channels)``.
        y_pred: warped images, the same size, any channels.
        sample_weight: None, ``(batch,)``, or a mask ``(batch, *spatial[, 1])``: how likely each
            voxel is drawn.

    Raises:
        ValueError: if `samples` or `rate` is out of range; when called, if no model has adopted
            the loss or the shapes do not fit.
    """

    #: Asked by `RegistrationModel`: fixed and warped may differ in channels.
    any_channels = True

    def __init__(
        self,
        channels=(1, 1),
        hidden=(32, 32),
        samples=4096,
        bias_corrected=False,
        rate=0.01,
        name="mine",
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if samples < 2:
            raise ValueError(f"Expected `samples` >= 2 voxels. Received: {samples}.")
        if not 0 < rate < 1:
            raise ValueError(f"Expected 0 < `rate` < 1. Received: {rate}.")
        self.channels = tuple(channels)
        self.adopted = False
        self.estimator = InformationEstimator(
            Critic(hidden, dtype="float32"), samples, bias_corrected, rate, dtype="float32"
        )
        # Now, as an optimiser is built before the first batch is seen.
        self.estimator.build(*((None, None, number) for number in self.channels))

    def adopt(self, model):
        """Let `model` train and keep this loss's network, and return the loss.

        Call it before the model is fitted, and before a subclassed model is built.

        Raises:
            ValueError: if it is a `keras.Sequential`, which trains none but its own layers.
        """
        model._loss_networks = [*getattr(model, "_loss_networks", ()), self.estimator]
        trained = {id(variable) for variable in model.trainable_variables}
        if not trained.issuperset(map(id, self.estimator.trainable_variables)):
            raise ValueError(
                "Expected a functional or a subclassed model, which can train this loss's network; "
                "make one of a Sequential by `keras.Model(model.inputs, model.outputs)`. "
                f"Received: {type(model).__name__}."
            )
        self.adopted = True
        return self

    def similarity(self, fixed, warped, mask=None):
        """Return the estimate of the mutual information, ``(batch,)`` nats, for use by hand.

        Raises:
            ValueError: if the shapes do not fit the number of channels or one another.
        """
        fixed, warped = check_image(fixed, "fixed"), check_image(warped, "warped")
        received = (fixed.shape[-1], warped.shape[-1])
        if received != self.channels:
            raise ValueError(
                f"Expected images with {self.channels} channels, fixed and warped; make the loss "
                f"with `MINE(channels={received})`. Received: {received}."
            )
        check_same_size(fixed[..., :1], warped[..., :1])
        fixed, warped = ops.cast(fixed, "float32"), ops.cast(warped, "float32")
        weights = None if mask is None else voxel_weights(mask, fixed)
        return self.estimator(fixed, warped, weights)

    def compare(self, fixed, warped, mask):
        """Return -MI of each pair, ``(batch,)``."""
        if not self.adopted:
            raise ValueError(
                "Expected a model that trains the network of this loss; without it the loss "
                "means nothing. Compile a `kreg.RegistrationModel` with it, or call "
                "`loss.adopt(model)` before another Keras model is fitted. "
                f"Received: {self.name}, which no model has adopted."
            )
        return -self.similarity(fixed, warped, mask)

    def get_config(self):
        """Return the constructor arguments."""
        return {
            **super().get_config(),
            "channels": self.channels,
            "hidden": self.estimator.critic.hidden,
            "samples": self.estimator.samples,
            "bias_corrected": self.estimator.bias_corrected,
            "rate": self.estimator.rate,
        }
