"""What the tests of examples share."""

import contextlib
import io
import runpy
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import pytest
from absl import app, flags

EXAMPLES = Path(__file__).parents[2] / "examples"


class Done(NamedTuple):
    """How a script ended, as `subprocess.run` says it."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_here(monkeypatch):
    """Run an example as a person would, in this process, which has TensorFlow imported already."""

    def run(name, *arguments):
        others = set(flags.FLAGS)
        out, errors = io.StringIO(), io.StringIO()
        script = EXAMPLES / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        monkeypatch.setattr(app, "run", lambda main: main(flags.FLAGS(sys.argv)))
        monkeypatch.delenv("KREG_DATA", raising=False)
        code = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            try:
                runpy.run_path(str(script), run_name="__main__")
            except (SystemExit, app.UsageError) as error:
                code = 1
                print(error, file=sys.stderr)
            except Exception:
                code = 1
                traceback.print_exc()
            finally:
                flags.FLAGS.unparse_flags()
                for flag in set(flags.FLAGS) - others:
                    delattr(flags.FLAGS, flag)
        return Done(code, out.getvalue(), errors.getvalue())

    return run
