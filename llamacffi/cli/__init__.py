"""The command line: ``llamacffi ...``, or ``python -m llamacffi ...``.

Each command is a module with ``add_parser``, which declares its options, and ``run``, which takes
them and returns the exit code.  Exceptions become one line and an exit code here.
"""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NoReturn

from . import info, run, tokenize
from .failure import Failures
from .inputs import is_model, model_hint
from .spellings import NO_MODEL, no_command, other_option
from .terminal import visible

COMMANDS = (run, tokenize, info)
EXIT_CODES = """\
exit codes:
  0    success
  1    failure: a file that cannot be loaded, not enough memory, ...
  2    wrong usage: an unknown option, a value out of range, no prompt, ...
  130  interrupted by Ctrl-C
  141  the reader of the output has closed it
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        argv: The arguments, by default those of the process.

    Raises:
        SystemExit: After ``--help`` or ``--version``, or for options that cannot be parsed.
    """
    if sys.stderr is None:  # closed: print() would write to stdout instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  for the rest of the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As on stderr: a character that the terminal cannot encode must not end the program.
        sys.stdout.reconfigure(errors="backslashreplace")
    failures = Failures()
    args = argparse.Namespace()
    try:
        make_parser().parse_args(argv, args)
        with _own_warnings(args):
            return _run(args)
    except BrokenPipeError:
        return 128 + getattr(signal, "SIGPIPE", 13)
    except KeyboardInterrupt:
        print("llamacffi: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:  # shown as one line, or whole with --traceback
        if getattr(args, "traceback", False):
            print(visible(traceback.format_exc()), end="", file=sys.stderr)
        else:
            print(f"llamacffi: {visible(failures.line(error))}", file=sys.stderr)
        return failures.code(error)
    finally:
        failures.close()
        _drop_unwritable()


def _run(args: argparse.Namespace) -> int:
    if args.verbose:
        _show_log()
    code: int = args.run(args)
    if sys.stdout is not None:  # it is None if the descriptor was closed
        sys.stdout.flush()
    return code


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="llamacffi",
        description="llama.cpp from the command line.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print versions and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for command in COMMANDS:
        sub = command.add_parser(commands)
        sub.set_defaults(run=command.run, parser=sub)
        sub.add_argument(
            "-v", "--verbose", action="store_true", help="show llama.cpp's log on stderr"
        )
        sub.add_argument(
            "--traceback", action="store_true", help="on failure, print the Python traceback"
        )
        sub.epilog = EXIT_CODES
        sub.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.commands = commands.choices
    return parser


class Parser(argparse.ArgumentParser):
    """A parser whose error messages are one line."""

    commands: Mapping[str, Parser] = MappingProxyType({})
    """The parsers of the commands, by name."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        line = visible(" ".join(message.split()))
        self.exit(2, f"llamacffi: {line} (see {self.prog} --help)\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse all arguments; for an unknown one, suggest what may be meant."""
        given = sys.argv[1:] if args is None else args
        if hint := no_command(given):
            self.error(hint)
        command = self.commands.get(next(iter(given), ""), self)
        if hint := other_option(given, command.options()):
            command.error(hint)
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = parsed.parser  # that of the command: without one, parsing has failed
            text = getattr(parsed, "prompt", getattr(parsed, "text", None))
            if text is not None and parsed.model is None and (hint := model_hint(text)):
                parser.error(hint)
            parser.error(parser.unknown_argument(unknown[0]))
        return parsed

    def options(self) -> list[str]:
        """Return the known options, in all spellings."""
        return [option for action in self._actions for option in action.option_strings]

    def unknown_argument(self, argument: str) -> str:
        """Return the message for an argument that this parser does not accept."""
        name = argument.partition("=")[0]
        if not argument.startswith("-"):
            if is_model(argument) and "--model" not in self.options():
                return f"{argument!r} is a model: {NO_MODEL}"
            takes_text = any(not action.option_strings for action in self._actions)
            remedy = "; quote a text that contains spaces" if takes_text else ""
            return f"unexpected argument {argument!r}{remedy}"
        near = difflib.get_close_matches(name, self.options(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"unknown option {name!r}{hint}"


class Version(argparse.Action):
    """Prints versions, which are looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the versions and exit."""
        versions = info.versions()
        print(
            f"llamacffi {versions['llamacffi']} "
            f"(llama.cpp {versions['llama.cpp']}, commit {versions['commit']})"
        )
        parser.exit()


class LogFormatter(logging.Formatter):
    """Makes log lines, which may contain text from files, safe for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line to print."""
        return visible(super().format(record))


@contextmanager
def _own_warnings(args: argparse.Namespace) -> Iterator[None]:
    """Print each warning once, as a line of the command, or not at all with ``--quiet``."""
    shown = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        line = f"llamacffi: warning: {visible(' '.join(str(message).split()))}"
        if line not in shown and not getattr(args, "quiet", False):
            print(line, file=sys.stderr)
        shown.add(line)

    previous, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = previous


def _show_log() -> None:
    """Print llama.cpp's log on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(levelname).1s %(message)s"))
    logger = logging.getLogger("llamacffi")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _drop_unwritable() -> None:
    """Discard output that cannot be written, about which Python would complain at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, stream.fileno())
            os.close(devnull)
