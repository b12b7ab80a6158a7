"""Work handed out to the workers of a Dask cluster."""

import contextlib
import logging
import pickle
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from kreg.cli.terminal import say
from kreg.version import __version__

#: Seconds to wait for the scheduler to answer.
_PATIENCE = 10


class ClusterError(OSError):
    """A cluster that cannot be reached or used; the message says what to do."""


def each(
    address: str, function: Callable[..., Any], tasks: Mapping[str, tuple]
) -> Generator[tuple[str, Any]]:
    """Yield the name of each task and ``function(*task)``, in the order in which they are done.

    A task whose worker is lost goes to another one. Where a task cannot be done at all, an
    exception takes the place of its result. Who closes it before the end, as after Ctrl-C, cancels
    what is queued; what workers are busy with they finish.

    Args:
        address: of the scheduler, such as "tcp://host:8786".
        function: importable on the workers.
        tasks: name -> arguments, which can be pickled.

    Raises:
        ClusterError: if the cluster cannot be reached or is lost, or a worker has another kreg.
    """
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise ClusterError(
            'Expected the package distributed for --scheduler: pip install "kreg[dask]". Received: '
            "no such package."
        ) from error
    with _connected(distributed, address) as client:
        _check_workers(client)
        run = f"kreg-{secrets.token_hex(4)}"
        work = _work(__version__)
        names = {
            client.submit(work, pickle.dumps((function, task)), key=(run, name), pure=False): name
            for name, task in tasks.items()
        }
        for future in distributed.as_completed(names):
            if future.cancelled():  # nobody else does
                raise ClusterError(
                    f"Expected the scheduler at {address} to stay. Received: a lost connection."
                )
            failure = future.exception()
            if failure is not None:
                yield names[future], failure
                continue
            done = future.result()
            _check_version(done.pop("worker"), done.pop("version"))
            yield names[future], done["result"]


@contextlib.contextmanager
def _connected(distributed: Any, address: str) -> Iterator[Any]:
    """Yield a client; once it is closed the scheduler forgets what it has asked for."""
    say(f"connecting to {address} ...")
    # Its tracebacks: what is wrong with a cluster is said by `ClusterError`.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        client = distributed.Client(address, timeout=_PATIENCE, set_as_default=False, name="kreg")
    except (OSError, ValueError) as error:
        raise ClusterError(
            "Expected --scheduler to name a running Dask scheduler, such as tcp://host:8786; the "
            f"command `dask scheduler` starts one. Received: {address}, {error}."
        ) from error
    with client, client.as_current():
        yield client


# Functions within functions travel as code: those of a module would be looked for in that module,
# by a worker with another kreg, or without any, and by the scheduler.


def _check_workers(client: Any) -> None:
    """Raise `ClusterError` where a worker has another kreg than this process, or none."""

    def version() -> str:
        from kreg.version import __version__

        return __version__

    found = client.run(version, on_error="return")
    say(f"{len(found)} workers" if found else "waiting for workers ...")
    for worker, received in found.items():
        _check_version(worker, received)


def _work(expected: str) -> Callable[[bytes], dict[str, Any]]:
    """Return what a worker does with a task. It may have come after `_check_workers`."""

    def work(task: bytes) -> dict[str, Any]:
        import pickle

        import distributed

        from kreg.version import __version__

        found = {"worker": distributed.get_worker().address, "version": __version__}
        if __version__ == expected:
            function, arguments = pickle.loads(task)
            found["result"] = function(*arguments)
        return found

    return work


def _check_version(worker: str, received: Any) -> None:
    if received != __version__:
        raise ClusterError(
            f"Expected kreg {__version__}, as here, on every worker: install it on {worker}. "
            f"Received: {received if isinstance(received, str) else repr(received)}."
        )
