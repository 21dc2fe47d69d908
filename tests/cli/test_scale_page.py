"""What docs/scale.md says to type is understood, and its tars are read."""

from __future__ import annotations

import re
import shlex
from contextlib import ExitStack
from pathlib import Path

import pytest

from weaktr import cli
from weaktr.shards.inputs import TarShards

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """The commands ``weaktr ...`` of the page's blocks, also those that launchers start."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
    found = []
    for line in "".join(blocks).splitlines():
        words = shlex.split(line)
        if "--wrap" in words:
            words = shlex.split(words[words.index("--wrap") + 1])
        if "weaktr" in words:
            found.append(words[words.index("weaktr") + 1 :])
    return found


def test_the_page_has_commands():
    assert len(commands()) >= 5
    assert {words[0] for words in commands()} == {"label", "index"}


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_understood(words, monkeypatch):
    given = []
    monkeypatch.setattr(cli, "_run", lambda command, arguments: given.append(arguments) or 0)
    assert cli.main(words) == 0
    assert given[0].command == words[0]


@pytest.mark.parametrize("option", sorted({*re.findall(r"`(?:weaktr \w+ )?(--[a-z-]+)", PAGE)}))
def test_options_are_there(option, capsys):
    helps = ""
    for command in ("label", "predict", "index"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        helps += capsys.readouterr().out
    others = (Path(__file__).parents[2] / "bench" / "scale_simulation.py").read_text()
    assert option in helps or f'"{option}"' in others or option == "--rdzv-endpoint"


def test_tars_that_it_writes_are_read(tmp_path, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    photographs = [("000001", b"jpeg", ["dog", "person"]), ("000002", b"jpeg", [])]
    exec(compile(code, "docs/scale.md", "exec"), {"photographs": photographs})
    shards = TarShards(str(tmp_path), "auto", ["cat", "dog", "person"], "ignore")
    with ExitStack() as stack:
        shard = shards.read("00000", stack, None)
    labels = {sample.name: sample.labels for sample in shard.samples}
    assert labels == {"000001": (1, 2), "000002": ()} and not shard.faults
