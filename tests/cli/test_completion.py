"""`octavo completion`: the scripts know every command and flag, and bash completes by them without Python."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from octavo.cli import completion
from octavo.cli.main import COMMANDS
from octavo.config import all_options
from tests.cli.command_line import octavo


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "octavo.bash"
    path.write_text(completion.bash())
    return path


def completed(script: Path, line: str, folder: Path) -> set[str]:
    """What bash would offer behind a line."""
    program = (
        f"source {shlex.quote(str(script))}; cd {shlex.quote(str(folder))}\n"
        f"COMP_LINE={shlex.quote(line)}; COMP_POINT={len(line)}; _octavo octavo\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    return set(done.stdout.split())


def test_bash(script: Path, tmp_path: Path) -> None:
    (tmp_path / "my-model.gguf").touch()
    assert {"serve", "run-batch", "chat", "ls"} <= completed(script, "octavo ", tmp_path)
    assert completed(script, "octavo run-", tmp_path) == {"run-batch"}
    assert completed(script, "octavo serve --kv-cache-d", tmp_path) == {"--kv-cache-dtype"}
    assert completed(script, "octavo serve --kv-cache-dtype ", tmp_path) == {"auto", "bf16", "fp16", "float32", "int8"}
    assert completed(script, "octavo serve --kv-cache-dtype=in", tmp_path) == {"int8"}
    assert completed(script, "octavo serve m -ctk f", tmp_path) == {"fp16", "float32"}
    assert completed(script, "octavo serve --no-enable-pre", tmp_path) == {"--no-enable-prefix-caching"}
    assert completed(script, "octavo serve my", tmp_path) == {"my-model.gguf"}
    assert {"smollm2:135m", "my-model.gguf"} <= completed(script, "octavo run ", tmp_path)
    assert "135m" in completed(script, "octavo run smollm2:", tmp_path)  # bash breaks words at colons
    assert completed(script, "octavo serve --config ", tmp_path) == {"my-model.gguf"}
    assert completed(script, "octavo bench serve --dataset-name ", tmp_path) == {"random", "sharegpt", "custom"}
    assert {"serve", "latency"} <= completed(script, "octavo bench ", tmp_path)
    assert completed(script, "octavo launch co", tmp_path) == {"codex", "continue"}
    assert completed(script, "octavo completion ", tmp_path) == {"bash", "zsh", "fish"}
    assert completed(script, "octavo serve --port ", tmp_path) == set()


def test_every_command_and_flag_is_known() -> None:
    names = {each.name for each in completion.commands()}
    assert set(COMMANDS) <= names and {"bench serve", "bench latency", "chat"} <= names
    for text in (completion.bash(), completion.zsh(), completion.fish()):
        for name in COMMANDS:
            assert re.search(rf"(?<![\w-]){name}(?![\w-])", text)
        for each in all_options():
            for flag in (each.flag, *each.aliases):
                assert flag in text or f"-l {flag[2:]} " in text or re.search(rf"-[so] {flag[1:]} ", text), flag


def test_quotes_of_zsh_and_fish_are_balanced() -> None:
    """Neither shell is needed to see that no word is torn: every line is one of a POSIX shell's, too."""
    for line in completion.zsh().splitlines():
        if line.startswith("      ") and line.endswith(" \\"):
            (word,) = shlex.split(line[:-2])
            assert re.fullmatch(r"-[\w-]+(=?\[[^\[\]]*\](:value:.*)?)", word), word
    for line in completion.fish().splitlines()[1:]:
        words = shlex.split(line.replace("\\'", ""))
        assert words[:3] == ["complete", "-c", "octavo"]


def test_installing(home: Path, tmp_path: Path) -> None:
    own = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": "", "XDG_DATA_HOME": "", "SHELL": "/usr/bin/fish"}
    for args, place in (
        (["completion", "bash", "--install"], ".local/share/bash-completion/completions/octavo"),
        (["--install-completion"], ".config/fish/completions/octavo.fish"),
        (["completion", "--install", "zsh"], ".zfunc/_octavo"),
    ):
        found = octavo(home, *args, **own)
        assert found.returncode == 0 and place in found.stderr and (tmp_path / place).stat().st_size > 10_000
    shown = octavo(home, "completion", "bash").stdout
    assert shown == (tmp_path / ".local/share/bash-completion/completions/octavo").read_text()
    wrong = octavo(home, "completion", "tcsh")
    assert wrong.returncode == 2 and "bash|zsh|fish" in wrong.stderr
