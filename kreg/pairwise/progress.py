"""Progress: the bar, the history and Keras callbacks of a pairwise registration."""

from collections.abc import Sequence

import keras
import numpy as np


class Progress:
    """Tells a bar, a history and Keras callbacks of each step; each step is an epoch to them.

    Args:
        steps: how many steps there will be.
        callbacks: Keras callbacks; one that sets ``self.model.stop_training`` ends the steps. Their
            ``self.params["epochs"]`` is `steps`.
        verbose: whether to show a bar.

    Attributes:
        history: name -> one value a step.
    """

    def __init__(self, steps: int, callbacks: Sequence[keras.callbacks.Callback], verbose: bool):
        self.history: dict[str, list] = {}
        self._model = keras.Model()
        self._model.stop_training = False
        self._callbacks = keras.callbacks.CallbackList(
            list(callbacks), model=self._model, epochs=steps
        )
        names = ["similarity", "overlap", "motion"]
        bar = keras.utils.Progbar(steps, stateful_metrics=names, unit_name="step")
        self._bar = bar if verbose else None
        self._done = 0
        self._callbacks.on_train_begin()

    def step(self, stage: str, **logs: float | np.ndarray) -> None:
        """Record one step; arrays (one value a pair) are averaged for bar and callbacks.

        A pair that takes no part in the step has NaN.
        """
        self._callbacks.on_epoch_begin(self._done)
        self.history.setdefault("stage", []).append(stage)
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)
        means = {name: float(np.nanmean(value)) for name, value in logs.items()}
        self._done += 1
        if self._bar is not None:
            self._bar.target = max(self._bar.target, self._done)  # a stage that goes on
            # The bar's own end waits for `close`: an early stop may come before it.
            self._bar.update(self._done, list(means.items()), finalize=False)
        self._callbacks.on_epoch_end(self._done - 1, means)

    @property
    def stopped(self) -> bool:
        """Whether a callback asked to stop."""
        return bool(self._model.stop_training)

    def close(self) -> None:
        """End the bar and the callbacks."""
        if self._bar is not None:
            self._bar.update(self._done, finalize=True)
        self._callbacks.on_train_end()


class OfPair:
    """The progress of a batch, as steps of one of its pairs alone tell it.

    Args:
        progress: of the batch.
        pair, count: which of how many pairs.
    """

    def __init__(self, progress: Progress, pair: int, count: int):
        self._progress, self._pair, self._count = progress, pair, count

    def step(self, stage: str, **logs: np.ndarray) -> None:
        """Record one step: arrays of one value."""
        spread = {name: np.full(self._count, np.nan) for name in logs}
        for name, value in logs.items():
            spread[name][self._pair] = value[0]
        self._progress.step(stage, **spread)

    @property
    def stopped(self) -> bool:
        """Whether a callback asked to stop."""
        return self._progress.stopped
