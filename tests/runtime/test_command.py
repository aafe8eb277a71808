import signal
import sys

import pytest
import torch

from hstvg.runtime.command import run_command


class Translated:
    """A sequence that torch reads in compiled code, which makes any error of it one of its own."""

    def __init__(self, act):
        self.act = act

    def __len__(self):
        return 1

    def __getitem__(self, at):
        self.act()


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def fail():
    raise RuntimeError


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `work` as a pipeline; gives exit code and what stderr was told."""

    def command(work):
        monkeypatch.setattr(sys, "argv", ["prepare", "source=shapes", "out=nowhere"])
        with pytest.raises(SystemExit) as ended:
            run_command("prepare", None, lambda config: work())
        return ended.value.code, capsys.readouterr().err

    return command


@pytest.fixture
def answers_to():
    """Sets what this process answers to Ctrl-C; tests may be a background job, or not."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("work", [press_ctrl_c, lambda: torch.tensor(Translated(press_ctrl_c))])
def test_ctrl_c_says_how_to_go_on_wherever_it_comes(run, answers_to, work):
    answers_to(signal.default_int_handler)
    assert run(work) == (75, "error: interrupted; run the same command again to go on\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_ctrl_c_the_error_of_compiled_code_is_shown(run):
    with pytest.raises(ValueError, match="shape of object type 'Translated'"):
        run(lambda: torch.tensor(Translated(fail)))


def test_what_ignores_ctrl_c_goes_on_ignoring_it(run, answers_to):
    answers_to(signal.SIG_IGN)
    assert run(press_ctrl_c) == (0, "")
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
