"""The ways a command can end, each one line for the person and one exit code for the script."""


class CommandError(Exception):
    """Failed: the message says what, where and what to do next."""

    exit_code = 1


class Stopped(CommandError):
    """All workers of a run agreed to stop; starting them again would end the same way."""


class ConfigError(CommandError):
    """The configuration is wrong; nothing was started."""

    exit_code = 2


class Interrupted(CommandError):
    """Stopped on request; the same command goes on from the last checkpoint."""

    exit_code = 75
