"""What the machine that runs kreg is good at, and what to tell it before long work."""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

#: Numbers of glibc's ``malloc.h``: one heap for all threads; what stays in it, however large;
#: how much of it may lie unused at its end; by how much it grows.
_ONE_HEAP, _LARGEST, _UNUSED, _GROWTH = (-8, 1), (-3, 2**30), (-1, 2**31 - 1), (-2, 2**28)
#: The instructions of a CPU that convolves bfloat16 fast, forward and backward.
_BFLOAT16 = {"avx512_bf16", "amx_bf16"}


def keep_freed_memory() -> bool:
    """Keep memory that was freed for what is allocated next, rather than hand it back.

    By its defaults Linux's allocator (glibc) hands large tensors back to the system, which clears
    each page anew when the next step asks for it: of a training step on small images that was
    half of the CPU time. Kept, the process holds on to the most that it ever needed. It concerns
    the whole process, so kreg does it by itself in its own commands and examples alone. Call it
    first, before tensors are made: threads that run already keep heaps of their own.

    Returns:
        Whether glibc took all of it; elsewhere nothing changes.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc: macOS, Windows, musl
        return False
    done = [bool(set_option(*option)) for option in (_ONE_HEAP, _LARGEST, _UNUSED, _GROWTH)]
    if not done[1]:  # an older glibc, which keeps 32 MiB at most
        done[1] = bool(set_option(_LARGEST[0], 2**25))
    return all(done)


def computes_bfloat16(cpuinfo: str | Path = "/proc/cpuinfo") -> bool:
    """Whether bfloat16 convolutions are faster than float32: on a GPU, on a CPU made for them.

    Others emulate them: TensorFlow took ten times as long for gradients on one with AVX2 alone.
    GPUs are taken to be of 2020 or later. It starts the backend: on JAX, initialise several
    processes before.

    Args:
        cpuinfo: where Linux describes the CPU; where it can't be read, the answer is no.
    """
    from kreg.backend import has_gpu  # not above: the commands' help must not wait for Keras

    if has_gpu():
        return True
    try:
        text = Path(cpuinfo).read_text()
    except OSError:
        return False
    flags = (line.partition(":")[2].split() for line in text.splitlines() if "flags" in line)
    return any(_BFLOAT16 & set(line) for line in flags)


@contextlib.contextmanager
def mixed_precision() -> Iterator[None]:
    """Layers made within compute in bfloat16 where that is faster; weights stay float32.

    Where it is not (`computes_bfloat16`) nothing changes. Fields and coordinates are float32
    in kreg's models whatever the policy.
    """
    import keras

    before = keras.config.dtype_policy()
    if computes_bfloat16():
        keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
