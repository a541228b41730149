"""Every error this package raises on purpose.

::

    Exception
    └── HpoError
        ├── ConfigError                 a user's setting cannot be used
        │   ├── OptionError             unknown option, wrong type, value out of range
        │   └── SpaceError              a domain, a space or a configuration is not valid
        ├── StudyError                  a study cannot be created, opened or told something
        │   ├── StudyNotFound           no study in that folder
        │   ├── StudyLocked             another launcher works on the study
        │   ├── StudyMismatch           the study was made with settings that cannot be changed
        │   ├── StudyCorrupt            the study's database cannot be read
        │   └── ReportError             a report that no trial can have sent
        ├── TrialError                  the training script does not do its part
        │   ├── MetricMissing           the metric was not logged
        │   ├── MetricInvalid           the metric is not one real number
        │   ├── CallbackMissing         the Trainer has no HPOCallback
        │   ├── ResourceMismatch        the Trainer trains for another number of epochs than max_t
        │   ├── StrategyUnsupported     the Trainer trains in processes that the script's own does not hear of
        │   ├── AllFailed               every trial of a study that is over failed
        │   └── RepeatedFailure         one trial after the other failed with the same error
        ├── ExecutionError              processes, channel, disk
        │   ├── BackendError            trials cannot be started
        │   ├── ChannelError            a message is malformed, too long or from a stranger
        │   ├── CheckpointError         a checkpoint cannot be written or is not the one we wrote
        │   │   └── DiskFull            there is no room for it, yet
        │   └── SearcherFailed          the searcher process died or raised
        └── SurrogateError
            ├── ShapeError              tensors do not fit together
            └── NumericalError          a matrix is not positive definite, even with jitter

    BaseException
    └── TrialInterrupted                leaves the user's code; ``except Exception`` must not catch it
        ├── TrialPaused
        └── TrialStopped

The last sentence of every message says what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HpoError(Exception):
    """Base of every error of this package."""


class ConfigError(HpoError, ValueError):
    """A user's setting cannot be used."""


class OptionError(ConfigError):
    """An option is unknown, has the wrong type or a value out of range."""


class SpaceError(ConfigError):
    """A domain, a search space or a configuration is not valid."""


class StudyError(HpoError):
    """A study cannot be created, opened or told something."""


class StudyNotFound(StudyError):
    """There is no study in the folder."""


class StudyLocked(StudyError):
    """Another launcher works on the study."""


class StudyMismatch(StudyError):
    """The study was created with settings that cannot be changed now."""


class StudyCorrupt(StudyError):
    """The study's database cannot be read."""


class ReportError(StudyError):
    """A report that no trial of this study can have sent."""


class TrialError(HpoError):
    """The training script does not do its part."""


class MetricMissing(TrialError):
    """The metric to be tuned was not logged."""


class MetricInvalid(TrialError):
    """The metric to be tuned was logged, but is not one real number."""


class CallbackMissing(TrialError):
    """A Trainer begins the trial's training without an ``HPOCallback``, or the script ended without one that did."""


class ResourceMismatch(TrialError):
    """The Trainer trains for another number of epochs than ``max_t``."""


class StrategyUnsupported(TrialError):
    """The Trainer's strategy trains in child processes, of whose pauses the script would not know."""


class AllFailed(TrialError):
    """The study is over, and every one of its trials failed."""


class RepeatedFailure(TrialError):
    """One trial after the other failed with the same error, and none reported in between."""


class ExecutionError(HpoError):
    """Something went wrong around the trials: processes, channel, disk."""


class BackendError(ExecutionError):
    """Trials cannot be started."""


class ChannelError(ExecutionError):
    """A message is malformed, too long, or from a stranger."""


class CheckpointError(ExecutionError):
    """A checkpoint cannot be written, or is not the one we wrote."""


class DiskFull(CheckpointError):
    """There is no room for a checkpoint. The study waits for it."""


class SearcherFailed(ExecutionError):
    """The searcher process died or raised."""


class SurrogateError(HpoError):
    """A surrogate model cannot be computed."""


class ShapeError(SurrogateError, ValueError):
    """Tensors do not fit together."""


class NumericalError(SurrogateError, ArithmeticError):
    """A matrix is not positive definite, even with jitter."""


class TrialInterrupted(BaseException):
    """Leaves the user's code after a pause or a stop.

    It derives from ``BaseException``, so that ``except Exception`` in the user's script does not
    swallow it, while ``finally`` blocks still run.
    """


class TrialPaused(TrialInterrupted):
    """The trial was paused; its checkpoint is written and it may go on later."""


class TrialStopped(TrialInterrupted):
    """The trial was stopped for good."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the known name nearest to ``name``, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
