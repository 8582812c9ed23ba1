"""Messages are on lines of their own, wherever an interrupt hits a progress bar."""

from __future__ import annotations

import gc
import signal
import sys
from pathlib import Path

import pytest

from qhdm import console
from qhdm.cli import main


class Screen:
    """A stderr that records what is written, and raises SIGTERM at one of its calls."""

    def __init__(self, interrupt_at: int = -1) -> None:
        self.text = ""
        self.calls = 0
        self._interrupt_at = interrupt_at

    def write(self, text: str) -> int:
        self.text += text
        self._called()
        return len(text)

    def flush(self) -> None:
        self._called()

    def isatty(self) -> bool:
        return False

    def _called(self) -> None:
        self.calls += 1
        if self.calls == self._interrupt_at:
            signal.raise_signal(signal.SIGTERM)

    @property
    def lines(self) -> list[str]:
        """As a terminal shows them: text after a carriage return overwrites."""
        lines = []
        for line in self.text.split("\n"):
            shown = ""
            for piece in line.split("\r"):
                shown = piece + shown[len(piece) :]
            lines.append(shown.rstrip())
        return lines


@pytest.mark.parametrize("command", ["train-classifier", "sample"])
def test_an_interrupt_is_reported_on_a_line_of_its_own(
    command: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM at every write of the bar, one run for each."""
    words = {
        "train-classifier": ["--data", "bundled", "--size", "8", "--steps", "2"],
        "sample": [str(tiny_run), "--class", "Forest", "--num", "1", "--steps", "2"],
    }[command]
    interrupted = 0
    for call in range(1, 100):
        out = tmp_path / f"{call}.safetensors"
        result = ["--out", str(out)] if command == "train-classifier" else []
        screen = Screen(call)
        monkeypatch.setattr(sys, "stderr", screen)
        code = main([command, *words, *result])
        gc.collect()  # bars that are left behind would write once more
        if screen.calls < call:
            assert code == 0
            break
        assert code == 130
        assert "it/s" in screen.text or "?" in screen.text  # there is a bar
        assert screen.text.endswith("qhdm: interrupted\n")
        assert screen.lines[-2:] == ["qhdm: interrupted", ""], screen.lines
        assert not out.exists()
        interrupted += 1
    assert interrupted >= 4


def test_messages_are_above_running_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with console.bar(total=3, desc="work", mininterval=0) as bar:
        bar.update()
        console.message("message")
        bar.update()
    assert screen.lines[0] == "message"
    assert screen.lines[1].startswith("work:  67%")
    assert screen.lines[2:] == [""]


def test_abandoned_bars_end_before_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    bars = [console.bar(total=3, desc=f"bar {i}", leave=i == 0) for i in range(2)]
    console.end_bars()
    console.message("message")
    assert screen.lines[-2:] == ["message", ""]
    del bars
    gc.collect()
    assert screen.lines[-2:] == ["message", ""]
    console.end_bars()  # nothing is left to end
    assert screen.lines[-2:] == ["message", ""]


def test_durations_are_in_their_largest_unit() -> None:
    texts = [console.duration(seconds) for seconds in (45, 119.6, 120, 300, 9000, 500_000)]
    assert texts == ["45 s", "120 s", "2 min", "5 min", "2.5 h", "5.8 days"]
