"""What the pages for people name exists: files, links, verbs, commands, options, tables; quoted code is the code."""

import re
from pathlib import Path

import pytest

from octavo.cli.main import ALIASES, COMMANDS
from octavo.config import all_options
from octavo.settings import resolve

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in ("quickstart", "adding", "architecture")))
FOLDERS = ("", "src/octavo/", "docs/", "native/")  # where the pages' paths begin
PLACEHOLDERS = re.compile(r"(^|/)x\.|<|\*|\{|^octavo\.yaml$|^model\.gguf$|^path/|^decisions/|^/")
BEGUN_ELSEWHERE = {"docs/status.md", "dist/", ".venv"}  # made by a verb

pages = pytest.mark.parametrize("page", PAGES)


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def exists(path: str) -> bool:
    """Below one of FOLDERS, or, where the page gives a bare name, anywhere in the package."""
    below = any((ROOT / folder / path).exists() for folder in FOLDERS)
    return below or ("/" not in path and any((ROOT / "src").rglob(path)))


@pages
def test_links_lead_somewhere(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", text(page)) if "://" not in link]
    assert not [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]


@pages
def test_named_files_exist(page: str) -> None:
    named = re.findall(r"`([\w./<>*{}-]+\.(?:py|h|cc|md|toml|json))\b[^`\n]*`", text(page))
    missing = [
        name for name in named if not PLACEHOLDERS.search(name) and name not in BEGUN_ELSEWHERE and not exists(name)
    ]
    assert not missing


@pages
def test_verbs_and_commands_exist(page: str) -> None:
    verbs = set(re.findall(r"python3 dev (\w+)", text(page)))
    known = set(re.findall(r'"(\w+)": \1[,}]', (ROOT / "dev").read_text()))
    assert verbs <= known and {"serve", "test", "lint"} <= known
    commands = set(
        re.findall(r"(?:^|[`/ ])octavo ([a-z]+)\b(?= \[|`| MODEL| NAME| path| model\.gguf| --)", text(page), re.M)
    )
    assert commands <= {*COMMANDS, *ALIASES}


def test_all_commands_are_told() -> None:
    found = re.findall(r"^\| `octavo ([\w-]+)", text("docs/quickstart.md"), re.M)
    assert sorted(found) == sorted(COMMANDS)
    assert all(f"`{name}`" in text("README.md") or f"octavo {name}" in text("README.md") for name in COMMANDS)


@pages
def test_named_options_exist(page: str) -> None:
    known = {name for each in all_options() for name in (each.flag, *each.aliases)}
    named = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", text(page)))
    assert named - known <= {"--help"}


def test_the_configuration_of_the_quickstart_reads(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", text("docs/quickstart.md"), re.S)
    file = tmp_path / "octavo.yaml"
    file.write_text(block)
    settings = resolve({"config": str(file)})
    assert settings.engine.max_model_len == 4096 and settings.server.api_key == ("sk-local-1",)


def test_quoted_code_is_the_code() -> None:
    """Blocks of Python in adding.md stand in the sources, line for line."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    lines = {line.strip() for line in sources.splitlines()}
    blocks = re.findall(r"```python\n(.*?)```", text("docs/adding.md"), re.S)
    assert len(blocks) == 6
    assert not [line for block in blocks for line in block.splitlines() if line.strip() not in lines]


def test_tables_that_adding_names_exist() -> None:
    """`NAME` in `file`: the file has a table of that name."""
    page = " ".join(text("docs/adding.md").split())
    found = re.findall(r"`([A-Z_]{5,})`(?: or `([A-Z_]{5,})`)?(?: in| of) `([\w/]+\.py)`", page)
    assert len(found) >= 9
    for first, second, file in found:
        source = (ROOT / "src" / "octavo" / file.removeprefix("src/octavo/")).read_text()
        for name in filter(None, (first, second)):
            assert re.search(rf"^{name}\b.*=", source, re.M), (name, file)
