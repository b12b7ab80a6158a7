"""Schedules: on which levels of the pyramid, with how many samples, for how many steps."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stage:
    """Steps that are alike.

    Args:
        levels: levels that are sampled at once, 0 the finest.
        steps: number of steps.
        samples: points drawn in all, anew every step.
        pretraining: steps of a trained similarity alone, before; not with a Keras optimizer, which
            moves transform and similarity at once.
        rates: learning rate of a trained similarity, first and last; a Keras optimizer has its own.
    """

    levels: tuple[int, ...]
    steps: int
    samples: int
    pretraining: int = 0
    rates: tuple[float, float] = (1e-2, 1e-2)

    @property
    def label(self) -> str:
        """What the history calls the stage."""
        return "level " + ", ".join(map(str, self.levels))

    def continued(self) -> "Stage":
        """Return the stage as it goes on: nothing to train beforehand, the last learning rate."""
        return replace(self, pretraining=0, rates=(self.rates[1], self.rates[1]))

    def rate(self, step: int) -> float:
        """Return the learning rate at a step, between the two in proportion of powers."""
        share = step / max(self.steps - 1, 1)
        return float(self.rates[0] ** (1 - share) * self.rates[1] ** share)


class Schedule:
    """Lays out the stages of a registration. Subclasses write ``stages(coarsest)``."""

    def stages(self, coarsest: int) -> list[Stage]:
        """Return the stages for levels 0 to `coarsest`."""
        raise NotImplementedError(f"{type(self).__name__} must define stages().")


@dataclass(frozen=True)
class CoarseToFine(Schedule):
    """One level after another, from the one of the global start to the finest.

    Args:
        steps: at the coarsest level, at each in between, at the finest.
        samples: likewise.
        pretraining: steps of a trained similarity alone, before the first.
        rates: learning rate of a trained similarity: up to the finest level; at its end.
    """

    steps: tuple[int, int, int] = (10, 8, 10)
    samples: tuple[int, int, int] = (16384, 32768, 65536)
    pretraining: int = 0
    rates: tuple[float, float] = (1e-2, 1e-2)

    def stages(self, coarsest: int) -> list[Stage]:
        """Return the stages for levels 0 to `coarsest`."""
        stages = []
        for level in range(coarsest, -1, -1):
            which = 2 if level == 0 else 0 if level == coarsest else 1
            rates = (self.rates[0], self.rates[1] if level == 0 else self.rates[0])
            pretraining = self.pretraining if level == coarsest else 0
            stages.append(
                Stage((level,), self.steps[which], self.samples[which], pretraining, rates)
            )
        return stages


@dataclass(frozen=True)
class AllLevels(Schedule):
    """All levels of the pyramid in every step (DRMIME: Nan et al., MIDL 2020).

    Args:
        steps: number of steps.
        samples: points on each level.
        pretraining: steps of a trained similarity alone, before the first.
        rates: learning rate of a trained similarity, first and last.
    """

    steps: int = 60
    samples: int = 8192
    pretraining: int = 0
    rates: tuple[float, float] = (1e-2, 6e-4)

    def stages(self, coarsest: int) -> list[Stage]:
        """Return the one stage for levels 0 to `coarsest`."""
        levels = tuple(range(coarsest + 1))
        samples = self.samples * len(levels)
        return [Stage(levels, self.steps, samples, self.pretraining, self.rates)]
