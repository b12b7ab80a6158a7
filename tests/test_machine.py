"""What kreg asks of the machine: memory that is kept, and the precision that is fast."""

import subprocess
import sys

import keras
import pytest

from kreg.machine import computes_bfloat16, keep_freed_memory, mixed_precision

#: Page faults of ten times 64 MB that are asked for, written and freed again.
FAULTS = """
import resource, sys
import numpy as np
from kreg.machine import keep_freed_memory
if sys.argv[1] == "kept":
    print(keep_freed_memory())
np.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(argument: str) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", FAULTS, argument], capture_output=True, text=True, check=True
    )
    return run.stdout.split()


def test_kept_memory_is_used_again():
    took_effect, kept = page_faults("kept")
    if took_effect == "False":
        pytest.skip("needs glibc's allocator")
    (fresh,) = page_faults("fresh")
    assert int(kept) < int(fresh) / 10


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False


CPUINFO = "processor\t: 0\nflags\t\t: fpu sse avx2{}\n\nprocessor\t: 1\nflags\t\t: fpu sse avx2{}\n"


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr("kreg.backend.has_gpu", lambda: False)


@pytest.mark.parametrize(
    ("flag", "fast"), [("", False), (" avx512_bf16", True), (" amx_bf16", True)]
)
def test_bfloat16_is_for_processors_made_for_it(flag, fast, tmp_path, without_gpu):
    path = tmp_path / "cpuinfo"
    path.write_text(CPUINFO.format(flag, flag))
    assert computes_bfloat16(path) is fast


def test_without_a_description_bfloat16_is_slow(tmp_path, without_gpu):
    assert computes_bfloat16(tmp_path / "missing") is False


def test_bfloat16_is_fast_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("kreg.backend.has_gpu", lambda: True)
    assert computes_bfloat16(tmp_path / "missing") is True


@pytest.mark.parametrize(("fast", "policy"), [(True, "mixed_bfloat16"), (False, "float32")])
def test_mixed_precision_where_it_is_fast(fast, policy, monkeypatch):
    monkeypatch.setattr("kreg.machine.computes_bfloat16", lambda: fast)
    with mixed_precision():
        assert keras.config.dtype_policy().name == policy
    assert keras.config.dtype_policy().name == "float32"


def test_the_policy_comes_back_after_an_error(monkeypatch):
    monkeypatch.setattr("kreg.machine.computes_bfloat16", lambda: True)
    with pytest.raises(ZeroDivisionError), mixed_precision():
        1 / 0  # noqa: B018
    assert keras.config.dtype_policy().name == "float32"
