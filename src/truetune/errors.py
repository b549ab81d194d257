"""What truetune raises for a mistake in a command, a config, the data or a run.

TruetuneError
├── ConfigError       a command line or a configuration that cannot be used
├── DataError         a file, a row or a set of rows that cannot be trained on
├── TemplateError     a chat template that cannot be rendered, or whose answers cannot be located
├── BackendError      the model, the hardware or a library cannot do what was asked
│   └── OtherProcessError another process of the training failed, and says so itself
└── CheckpointError   a checkpoint or a run's directory that cannot be used
"""


class TruetuneError(Exception):
    """A mistake the user can mend: `message` says what and where, `hint` what to do.

    The command line prints both and exits with `exit_status` (1: data, run or model; 2: command or config).
    """

    exit_status = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class ConfigError(TruetuneError):
    """A command line or a configuration that cannot be used; the message lists every problem found."""

    exit_status = 2


class DataError(TruetuneError):
    """A file, a row or a set of rows that cannot be trained on."""


class TemplateError(TruetuneError):
    """A chat template that cannot be rendered, or whose answers cannot be located in the text."""


class BackendError(TruetuneError):
    """The model, the hardware or an installed library cannot do what was asked."""


class OtherProcessError(BackendError):
    """Another process of this training failed, and has told its error itself; its exit status is that of all."""

    def __init__(self, message: str, *, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class CheckpointError(TruetuneError):
    """A checkpoint or a run's directory that cannot be used."""


def first_line(error: BaseException) -> str:
    """A library's reason in one line; the error's name where it gives none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
