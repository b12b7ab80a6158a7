import subprocess
import sys
from pathlib import Path

import pytest

from kreg.cli.command import COMMANDS
from kreg.version import __version__

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches(kreg, name):
    code, printed, said = kreg(name, "--help")
    assert (code, said) == (0, "")
    assert f"usage: kreg {name}" in printed
    assert printed.count(f"\n  kreg {name} ") >= 2  # examples
    for option in ("--json", "--overwrite", "--verbose"):
        assert option in printed
    assert max(map(len, printed.splitlines())) <= 100
    assert kreg("help", name)[1] == printed
    assert name in kreg("--help")[1]


def test_says_its_version(kreg):
    assert kreg("--version") == (0, f"kreg {__version__}\n", "")


def test_help_waits_for_no_keras():
    script = (
        "import sys; sys.argv = ['/somewhere/bin/kreg', '--help']\n"
        "from kreg.cli import main\n"
        "code = main()\n"
        "print(code, sorted({'keras', 'tensorflow', 'jax', 'torch', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "0 []"


def test_runs_as_a_module():
    script = [sys.executable, "-X", "importtime", "-m", "kreg", "info", "README.md"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert len(lines) == 1
    assert lines[0].startswith("kreg info: Expected one of")
    assert "| keras\n" not in done.stderr
