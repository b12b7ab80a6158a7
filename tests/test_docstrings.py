"""The examples in docstrings: what they print is what comes out."""

import doctest
import importlib

import pytest

import kreg
from tests.test_packaging import MODULES

#: What people come for has an example.
SHOWN = [
    kreg.register,
    kreg.io.read,
    kreg.io.register,
    kreg.layers.GaussianPyramid,
    kreg.layers.JointSaliency,
    kreg.layers.MatrixExpAffine,
    kreg.layers.SpatialTransformer,
    kreg.losses.NCC,
    kreg.ops.warp,
]


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = []
    for module in MODULES:
        if ">>> " in module.path.read_text(encoding="utf-8"):
            for test in finder.find(importlib.import_module(module.name)):
                found += [test] if test.examples else []
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
def test_prints_what_it_says(example, uncompiled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    runner = doctest.DocTestRunner(verbose=False)
    printed: list[str] = []
    runner.run(example, out=printed.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(printed)


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: f"{shown.__module__}.{shown.__name__}")
def test_has_an_example(shown):
    assert f"{shown.__module__}.{shown.__qualname__}" in {example.name for example in EXAMPLES}
