"""Image registration from the shell.

usage: kreg COMMAND ... [options]

{commands}

Start with two files of your own:
  kreg register fixed.png moving.png --output aligned
  kreg apply aligned labels.png --labels --output labels_on_fixed.png
  kreg COMMAND --help     what a command takes, what it leaves, with examples

For every command:
{shared}

Exit codes: 0 done; 1 bad input or a failure; 2 wrong usage; 3 registered, but not trusted;
130 interrupted. Results are written whole or not at all; nothing is replaced unasked.
"""

import contextlib
import difflib
import os
import signal
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType

from absl import flags

from kreg.cli import apply, batch, evaluate, info, predict, register, train
from kreg.cli.outcome import (
    BAD_INPUT,
    DONE,
    INTERRUPTED,
    USAGE,
    Outcome,
    UsageError,
    as_json,
    one_line,
)
from kreg.machine import keep_freed_memory
from kreg.version import __version__

COMMANDS = {
    module.__name__.rpartition(".")[-1]: module
    for module in (register, apply, batch, evaluate, info, train, predict)
}
#: What stands for the value of an option, by its type.
_PLACES = {"int": "N", "float": "X"}
_HELP = ("--help", "-h", "-help", "help")


def _define_shared(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("json", False, "print one JSON object instead of text", flag_values=values)
    flags.DEFINE_bool(
        "overwrite", False, "replace an earlier result of that name", flag_values=values
    )
    flags.DEFINE_bool("verbose", False, "show tracebacks and warnings", flag_values=values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command ``kreg``.

    Args:
        arguments: what follows ``kreg``; those of the process where None.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _ended_by_signals():
            code = _main(arguments)
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # as of `kreg info a.png | head -1`
        # Python would complain once more as it ends.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BAD_INPUT


def _main(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if first in _HELP and arguments[1:2] and arguments[1] in COMMANDS:  # kreg help register
        arguments, first = [arguments[1], "--help"], arguments[1]
    if first in _HELP:
        print(_overview())
        return DONE
    if first == "--version":
        print(f"kreg {__version__}")
        return DONE
    command = COMMANDS.get(first)
    if command is None:
        close = difflib.get_close_matches(first, COMMANDS, 1)
        hint = f"; did you mean {close[0]}?" if close else "."
        return _refused(
            f"kreg: expected a command: {', '.join(COMMANDS)}{hint} Received: "
            f"{first or 'nothing'}. See kreg --help",
            USAGE,
        )
    keep_freed_memory()
    values = flags.FlagValues()
    command.define(values)
    _define_shared(values)
    values.set_gnu_getopt()  # options may stand behind files
    if any(one in _HELP[:3] for one in arguments):
        print(_help(command, values))
        return DONE
    try:
        positional = values(["kreg", *arguments[1:]])[1:]
    except flags.Error as error:
        return _refused(f"kreg {first}: {one_line(error)}", USAGE)
    return _run(first, command, positional, values)


def _run(name: str, command: ModuleType, positional: list[str], values: flags.FlagValues) -> int:
    """Run a command; whatever is wrong becomes one line and an exit code."""
    try:
        # stdout is for results alone: what Keras and others print goes to stderr.
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            if not values.verbose:
                warnings.simplefilter("ignore")
            outcome: Outcome = command.run(positional, values)
    except UsageError as error:
        text, code = f"{one_line(error)} See kreg {name} --help", USAGE
        remembered: BaseException = error
    except (KeyboardInterrupt, SystemExit) as error:
        ended = error.code if isinstance(error, SystemExit) else INTERRUPTED
        code = ended if isinstance(ended, int) else BAD_INPUT
        text, remembered = _after_interrupt(command, values), error
    except BrokenPipeError:
        raise
    except Exception as error:
        text, code, remembered = one_line(error), BAD_INPUT, error
    else:
        print(as_json(outcome.values) if values.json else "\n".join(outcome.lines))
        return outcome.code
    if values.verbose:
        traceback.print_exception(remembered)
    if values.json:
        print(as_json({"error": text, "exit_code": code}))
    return _refused(f"kreg {name}: {text}", code)


def _after_interrupt(command: ModuleType, values: flags.FlagValues) -> str:
    """Return what an interrupted command leaves."""
    left = getattr(command, "after_interrupt", None)
    return f"interrupted; {left(values) if left else 'nothing was written'}"


def _refused(text: str, code: int) -> int:
    print(text, file=sys.stderr, flush=True)
    return code


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM end a command at once, by way of every `finally`.

    Not as KeyboardInterrupt, at which a registration returns the last transform.
    """

    def end(number, frame):
        raise SystemExit(128 + number)

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                before[number] = signal.signal(number, end)
    except ValueError:  # not in the main thread
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


# --- help ---


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    commands = [
        f"  {name:{width}} {(module.__doc__ or '').partition(chr(10))[0]}"
        for name, module in COMMANDS.items()
    ]
    values = flags.FlagValues()
    _define_shared(values)
    return (__doc__ or "").strip().format(commands="\n".join(commands), shared=_options(values))


def _help(command: ModuleType, values: flags.FlagValues) -> str:
    return f"{(command.__doc__ or '').strip()}\n\nOptions:\n{_options(values)}"


def _options(values: flags.FlagValues) -> str:
    lines = []
    for name in list(values):
        flag = values[name]
        choices = getattr(flag.parser, "enum_values", None)
        what = "|".join(choices) if choices else _PLACES.get(flag.flag_type(), "TEXT")
        label = f"  --{name}" if flag.boolean else f"  --{name}={what}"
        # What absl adds to the help of choices and lists is said by the label.
        text = flag.help.partition(">: ")[2] if choices else flag.help
        text = text.partition(";\n")[0]
        if flag.default not in (None, [], ""):
            text += "" if flag.boolean else f" ({flag.default})"
        wrapped = textwrap.wrap(text, 66)
        first = [f"{label:30}{wrapped.pop(0)}"] if len(label) < 30 else [label]
        lines += [*first, *(" " * 30 + one for one in wrapped)]
    return "\n".join(lines)
