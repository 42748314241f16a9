"""`generate` as a person types it."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flashsvd.cli.commands import application
from flashsvd.errors import FlashSVDError
from flashsvd.generation.writer import Writer

DENSE = ("--engine", "dense", "--device", "cpu", "--max-new-tokens", "8")


def _run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(application, ["generate", str(folder), *arguments], catch_exceptions=False)


def test_text_is_on_stdout_and_rates_are_on_stderr(speaker_folder: Path) -> None:
    done = _run(speaker_folder, "--prompt", "def main():\n", *DENSE)
    found = json.loads(_run(speaker_folder, "--prompt", "def main():\n", *DENSE, "--json").stdout)
    assert done.exit_code == 0 and done.stdout == found["written"][0]["text"] + "\n"
    lines = done.stderr.splitlines()
    assert lines[0] == "8 tokens, ended by length"
    assert "tokens/s cold), then " in lines[1] and "(median " in lines[1]
    assert lines[2].startswith("cache ") and ", weights " in lines[2]
    assert lines[3] == "engine dense, no factors" and lines[4] == f"prefill: {found['prefill']}"
    assert found["steady_tokens_per_second"] and found["cold_tokens_per_second"] and found["prefill"]


def test_pieces_come_before_the_end(
    speaker_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    take = Writer.take

    def watched(self: Writer, tokens: Any) -> None:
        seen.append(capsys.readouterr().out)
        take(self, tokens)

    monkeypatch.setattr(Writer, "take", watched)
    application(["generate", str(speaker_folder), "--prompt", "x = 1\nfor", *DENSE], standalone_mode=False)
    assert sum(map(bool, seen)) > 3


def test_several_prompts_come_one_after_another(speaker_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("x = 1\nfor", encoding="utf-8")
    done = _run(speaker_folder, "--prompt", "r", "--prompt-file", str(tmp_path / "prompt.txt"), *DENSE)
    headings = [line for line in done.stdout.splitlines() if line.startswith("--- ")]
    assert headings[0] == "--- 1: after 2 tokens, length" and headings[1].startswith("--- 2: after ")
    assert "16 tokens, ended by length" in done.stderr and " x 2 prompts" in done.stderr
    alone = _run(speaker_folder, "--prompt", "r", *DENSE).stdout
    assert alone in done.stdout


def test_random_tokens_print_ids(speaker_folder: Path) -> None:
    done = _run(speaker_folder, "--prompt-tokens", "5", *DENSE)
    ids = [int(word) for word in done.stdout.split()]
    assert len(ids) == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_the_text_and_the_rates(
    speaker_folder: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Writer.take

    def interrupted(self: Writer, tokens: Any) -> None:
        take(self, tokens)
        if len(self.times) == 3:
            signal.raise_signal(number)

    monkeypatch.setattr(Writer, "take", interrupted)
    done = _run(speaker_folder, "--prompt", "r", *DENSE)
    assert done.exit_code == 130 and "Traceback" not in done.stderr
    assert done.stdout.strip() and done.stderr.startswith("3 tokens, ended by interrupt\nfirst after ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give one or more prompts"),
        (("--prompt", ""), "prompt 1 is empty"),
        (("--prompt-file", "missing.txt"), "cannot read the prompt missing.txt"),
        (("--prompt", "a", "--prompt-tokens", "3"), "give one or more prompts, or numbers"),
        (("--prompt", "a" * 200), "but the context of"),
        (("--prompt", "a", "--max-new-tokens", "1000"), "max-new-tokens must be at most 62"),
        (("--prompt", "a", "--temperature", "-1"), "temperature must be"),
        (("--prompt", "a", "--top-p", "2"), "top_p must be"),
        (("--prompt", "a", "--top-k", "0"), "top_k must be"),
        (("--prompt", "a", "--engine", "warp"), "engine must be one of"),
        (("--prompt", "a", "--cache", "paged"), "cache must be one of"),
        (("--prompt", "a", "--keep", "2"), "keep"),
        (("--prompt", "a", "--keep", "0.5", "--rules", "*.q: 4"), "give one of --keep"),
        (("--prompt", "a", "--device", "tpu"), "device must be"),
        (("--prompt", "a", "--stop", ""), "a stop text must not be empty"),
    ],
)
def test_bad_input_is_an_error_for_people(
    speaker_folder: Path, arguments: tuple[str, ...], words: str
) -> None:
    with pytest.raises(FlashSVDError, match=words) as error:
        _run(speaker_folder, "--device", "cpu", *arguments)
    assert "\n" not in str(error.value)
