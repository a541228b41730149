"""``lightning-hpo``: look at a study folder, also while the study runs.

A command is an entry of :data:`COMMANDS`; what it does lives elsewhere and is imported when it is called.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_hpo.errors import HpoError, OptionError

if TYPE_CHECKING:
    from rich.text import Text

    from lightning_hpo.report.cleaning import Cleaned

EXIT_ERROR = 2
_EXIT_BROKEN_PIPE = 1
_EXIT_INTERRUPTED = 130
_MOST_DIGITS = 18
"""Of a number of trials, workers or seeds."""


@dataclass(frozen=True)
class Command:
    """A sub-command."""

    name: str
    summary: str
    declare: Callable[[argparse.ArgumentParser], None]
    """Adds its arguments."""
    run: Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 2 with one line on standard error."""
    options = make_parser().parse_args(arguments)
    try:
        options.run(options)
        print(end="", flush=True)  # also if there is no standard output
        return 0
    except HpoError as problem:
        print(f"lightning-hpo: {problem}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:  # the reader, such as head, has seen enough
        _give_up_output()
        return _EXIT_BROKEN_PIPE
    except OSError as problem:
        what, why = problem.filename or "The output", problem.strerror or problem
        print(
            f"lightning-hpo: {what} cannot be read or written: {why}. Make room on the disk, or correct permissions.",
            file=sys.stderr,
        )
        try:
            sys.stdout.flush()
        except OSError:
            _give_up_output()
        return EXIT_ERROR
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED


def _give_up_output() -> None:
    """What is left of it goes nowhere: Python's own flush at exit must not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    from lightning_hpo import __version__

    parser = argparse.ArgumentParser(
        prog="lightning-hpo",
        description="Look at a hyperparameter study, also while it runs.",
        epilog="Without DIR a command takes the study in the current folder, or the newest one below ./multirun; "
        "clean, which deletes, takes only the one that is named.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = parsers.add_parser(command.name, help=command.summary, description=_sentence(command.summary))
        command.declare(sub)
        sub.set_defaults(run=command.run)
    return parser


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


def _declare_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", nargs="?", type=Path, help="the study folder")


def _declare_json(parser: argparse.ArgumentParser) -> None:
    _declare_folder(parser)
    parser.add_argument("--json", action="store_true", help="write JSON")


def _folder(options: argparse.Namespace) -> Path:
    from lightning_hpo.report.folder import find_study

    return find_study(Path(".")) if options.folder is None else Path(options.folder)


def _show(parts: Iterable[Text]) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    for part in parts:
        console.print(part, soft_wrap=True)


def _show_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))


# ---------------------------------------------------------------------------------------- commands


def _status(options: argparse.Namespace) -> None:
    from lightning_hpo.report import overview
    from lightning_hpo.report.folder import read_study

    study = read_study(_folder(options))
    if options.json:
        _show_json(overview.status_json(study))
    else:
        _show(overview.status(study))


def _declare_trials(parser: argparse.ArgumentParser) -> None:
    from lightning_hpo.core.trial import TrialStatus
    from lightning_hpo.report.overview import SORT_KEYS

    _declare_json(parser)
    parser.add_argument("--sort", choices=SORT_KEYS, default="id", help="order: number, best value, or longest trained")
    parser.add_argument("--status", choices=[s.value for s in TrialStatus], help="only trials with this status")
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N")


def _count(text: str) -> int:
    if not _is_countable(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of things. Give a whole number of at least 0.")
    return int(text)


def _is_countable(text: str) -> bool:
    return text.isdecimal() and len(text) <= _MOST_DIGITS


def _trials(options: argparse.Namespace) -> None:
    from lightning_hpo.report import overview
    from lightning_hpo.report.folder import read_study

    study = read_study(_folder(options))
    chosen = overview.choose_trials(study, options.sort, options.status, options.limit)
    if options.json:
        _show_json(overview.trials_json(study, chosen))
    else:
        _show(overview.trials(study, chosen))


def _best(options: argparse.Namespace) -> None:
    from lightning_hpo.report import overview
    from lightning_hpo.report.folder import read_study

    study = read_study(_folder(options))
    if options.json:
        _show_json(overview.best_json(study))
    else:
        _show(overview.best(study))


def _declare_why(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [-h] [DIR] ID"
    parser.add_argument("which", metavar="[DIR] ID", nargs="+", help="the study folder, and the number of a trial")


def _why(options: argparse.Namespace) -> None:
    from rich.text import Text

    from lightning_hpo.report.folder import find_study
    from lightning_hpo.report.story import tell_story

    *folders, trial = options.which
    if len(folders) > 1 or not _is_countable(trial):
        raise OptionError(
            f"'why {' '.join(options.which)}' names no trial. "
            "Give the number of one, after the study folder if need be: lightning-hpo why DIR 17"
        )
    folder = Path(folders[0]) if folders else find_study(Path("."))
    _show([Text(tell_story(folder, int(trial)))])


def _declare_export(parser: argparse.ArgumentParser) -> None:
    from lightning_hpo.report.export import KINDS

    _declare_folder(parser)
    parser.add_argument(
        "--to",
        nargs=2,
        metavar=("FORMAT", "FILE"),
        required=True,
        help=f"the format ({', '.join(KINDS)}) and the file to write, or - for standard output; "
        "optuna writes an SQLite storage",
    )


def _export(options: argparse.Namespace) -> None:
    from lightning_hpo.errors import did_you_mean
    from lightning_hpo.report.export import KINDS, export

    kind, target = options.to
    if kind not in KINDS:
        raise OptionError(f"{kind!r} is no format.{did_you_mean(kind, KINDS)} Use one of: {', '.join(KINDS)}.")
    if target != "-":
        export(_folder(options), kind, Path(target))
        print(target)
        return
    with tempfile.TemporaryDirectory(prefix="lhpo-") as scratch:
        content = Path(scratch) / "content"
        export(_folder(options), kind, content)
        sys.stdout.flush()
        sys.stdout.buffer.write(content.read_bytes())


def _declare_report(parser: argparse.ArgumentParser) -> None:
    _declare_folder(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="the file to write (default: report.html in DIR)")


def _report(options: argparse.Namespace) -> None:
    from lightning_hpo.report.page import write_page

    print(write_page(_folder(options), options.output))


def _declare_clean(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="the study folder")
    parser.add_argument("--all", action="store_true", help="also those of paused trials and of the best one")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _clean(options: argparse.Namespace) -> None:
    from lightning_hpo.report.cleaning import clean

    def confirm(doomed: Cleaned) -> bool:
        if options.yes or not (doomed.trials or doomed.strays):
            return True
        if not sys.stdin.isatty():
            raise OptionError("There is nobody to ask whether checkpoints may be deleted. Add --yes.")
        loss = "Paused trials will start from the beginning, and the best one's is among them. " if options.all else ""
        what, size = _deletion(doomed)
        with contextlib.suppress(EOFError):
            return input(f"Delete {what} ({size})? {loss}[y/N] ").strip().lower() in ("y", "yes")
        return False

    cleaned = clean(options.folder, everything=options.all, confirm=confirm)
    if cleaned is None:
        print("Nothing was deleted.")
    elif not cleaned.trials and not cleaned.strays:
        print("There is nothing to delete.")
    else:
        what, size = _deletion(cleaned)
        print(f"{what} deleted ({size}).")


def _deletion(cleaned: Cleaned) -> tuple[str, str]:
    """What goes, in words, and its size."""
    from lightning_hpo.report import formats

    parts = [formats.amount(len(cleaned.trials), "checkpoint")] if cleaned.trials else []
    if cleaned.strays:
        count = len(cleaned.strays)
        parts.append(f"{count if parts else formats.amount(count, 'checkpoint')} that no trial has recorded")
    return " and ".join(parts), formats.size(cleaned.size)


def _declare_simulate(parser: argparse.ArgumentParser) -> None:
    _declare_json(parser)
    parser.add_argument(
        "--algorithm",
        action="append",
        metavar="NAME",
        help="an algorithm to be simulated beside the study's own; may be given several times",
    )
    parser.add_argument("--workers", type=_count, metavar="N", help="trials at a time (default: the study's)")
    parser.add_argument("--seconds", type=float, metavar="S", help="time on the clock (default: the study's)")
    parser.add_argument("--seeds", type=_count, default=5, metavar="N", help="simulations per algorithm (default: 5)")


def _simulate(options: argparse.Namespace) -> None:
    import dataclasses
    import warnings

    # Libraries warn each other's authors when they are imported.
    warnings.simplefilter("ignore", FutureWarning)

    from lightning_hpo.core.options import StudyOptions
    from lightning_hpo.core.searcher import Searcher
    from lightning_hpo.report.folder import read_study
    from lightning_hpo.report.whatif import describe, what_if
    from lightning_hpo.searchers import make_searcher

    def searcher_of(simulated: StudyOptions) -> Searcher:
        return make_searcher(simulated.searcher_name, simulated.searcher)

    study = read_study(_folder(options))
    algorithms = list(dict.fromkeys([study.state.options.algorithm, *(options.algorithm or [])]))
    found = what_if(
        study.state,
        algorithms,
        searcher_of,
        n_workers=options.workers,
        max_time=options.seconds,
        seeds=options.seeds,
    )
    if options.json:
        _show_json([dataclasses.asdict(one) for one in found])
    else:
        _show([describe(study.state, found, study.unit)])


COMMANDS: tuple[Command, ...] = (
    Command("status", "show where a study stands", _declare_json, _status),
    Command("trials", "list the trials of a study", _declare_trials, _trials),
    Command("best", "show the best trials with their configurations", _declare_json, _best),
    Command("why", "tell the story of one trial: every decision and its reason", _declare_why, _why),
    Command("export", "write all reports to a file for other programs", _declare_export, _export),
    Command("report", "write one HTML page with plots", _declare_report, _report),
    Command("simulate", "tell what other algorithms would have done with these curves", _declare_simulate, _simulate),
    Command("clean", "delete checkpoints that are not needed any more", _declare_clean, _clean),
)


if __name__ == "__main__":
    sys.exit(main())
