"""What the tests of layers share."""

import pytest

from kreg import backend
from kreg.layers import saliency_refinement, select_displacement


def forget_compiled():
    """Forget what was compiled, or not compiled, before."""
    for cache in (
        saliency_refinement._step,
        saliency_refinement._describe,
        select_displacement._cost,
    ):
        cache.cache_clear()


@pytest.fixture
def uncompiled_refinement(monkeypatch):
    """Refinement runs op by op: XLA takes seconds to compile a step for each shape."""
    monkeypatch.setattr(backend, "compiled", lambda function: function)
    forget_compiled()
    yield
    forget_compiled()
