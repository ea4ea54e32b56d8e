"""What people type and paste reaches the options, or is told by name."""

from pathlib import Path

import click
import pytest

from octavo.cli.flags import IGNORED, OptionCommand, to_markdown, to_yaml
from octavo.config import all_options
from octavo.errors import ConfigError
from octavo.settings import Settings, resolve

ROOT = Path(__file__).parents[2]


def given(*args: str, **own: object) -> Settings:
    """The settings that `octavo serve ARGS` would run with."""
    seen: list[Settings] = []
    command = OptionCommand(
        "serve",
        lambda settings, print_config: seen.append(settings),
        "Serve a model.",
        own=[click.Option(["--print-config"], is_flag=True)],
    )
    command.main(list(args), prog_name="octavo serve", standalone_mode=False)
    return seen[0]


def refused(*args: str) -> str:
    with pytest.raises(ConfigError) as caught:
        given(*args)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    "args",
    [
        ["--max-model-len", "32k"], ["--max_model_len", "32k"], ["--max-model-len=32k"], ["--max_model_len=32k"],
        ["-c", "32k"], ["-c=32k"], ["-c32k"], ["--ctx-size", "32000"], ["--context-length=32000"],
    ],
)  # fmt: skip
def test_spellings(args: list[str]) -> None:
    assert given(*args).engine.max_model_len == 32_000


@pytest.mark.parametrize(
    "args", [["m.gguf"], ["--model", "m.gguf"], ["-m", "m.gguf"], ["-hf", "m.gguf"], ["-hf=m.gguf"]]
)
def test_models(args: list[str]) -> None:
    assert given(*args).engine.model == "m.gguf"
    assert given(*args, "--port", "1").engine.model == "m.gguf"
    assert given("--port", "1", *args).engine.model == "m.gguf"


def test_two_models() -> None:
    assert "a" in refused("a", "--model", "b") and given("a", "--model", "a").engine.model == "a"
    assert "extra argument" in refused("a", "b")


@pytest.mark.parametrize("name", [alias for each in all_options() for alias in each.aliases])
def test_every_alias_is_taken(name: str) -> None:
    option = next(each for each in all_options() if name in each.aliases)
    word = {"": "", "N": "64", "X": "0.5", "BYTES": "1GiB", "SECONDS": "3", "MODEL": "x", "JSON": "{}"}.get(
        option.kind.metavar, "a"
    )
    if "|" in option.kind.metavar:
        word = option.kind.metavar.rsplit("|", 1)[1]
    made = given(name, word) if word else given(name)
    assert made.value(option.name) == option.kind.parse(word or True)
    assert option.name in made.sources


@pytest.mark.parametrize("name", [negation for each in all_options() for negation in each.negations])
def test_every_negation(name: str) -> None:
    option = next(each for each in all_options() if name in each.negations)
    assert given(name).value(option.name) is False


def test_booleans() -> None:
    assert given("--no-enable-prefix-caching").engine.enable_prefix_caching is False
    assert given("--enable-prefix-caching=false").engine.enable_prefix_caching is False
    assert given("--no-enable-prefix-caching", "--enable-prefix-caching").engine.enable_prefix_caching is True
    assert given("--no-default-chat-template").text.default_chat_template is False
    assert given("--no_offline").engine.offline is False
    assert "expected true or false" in refused("--offline=perhaps")


@pytest.mark.parametrize("name", list(IGNORED))
def test_flags_without_effect(name: str) -> None:
    takes, why = IGNORED[name]
    made = given(name, *(["1"] if takes else []), "--port", "1")
    assert made.notices == (f"ignored: {name} ({why})",)
    assert made.server.port == 1 and made.engine.model == resolve({}, {}).engine.model


def test_one_machine_is_one_rank() -> None:
    assert given("-tp=1", "m").engine.model == "m"
    assert "as 1" in refused("--tensor-parallel-size", "2", "m") and "as 1" in refused("-tp")


def test_flash_attention_may_take_a_word() -> None:
    assert given("-fa", "on", "m").engine.model == "m"
    assert given("-fa", "m").engine.model == "m"


def test_unknown_flags_name_the_nearest() -> None:
    assert refused("--max-model-length", "3") == "unknown option --max-model-length. Did you mean --max-model-len?"
    assert "--port" in refused("--prot=3")
    assert refused("--zzz") == "unknown option --zzz."


@pytest.mark.parametrize("dash", "–—−‑")
def test_pasted_dashes(dash: str) -> None:
    told = refused(f"{dash}port", "3")
    assert "typographic dash" in told and "Type --port." in told
    assert "typographic dash" in refused(f"{dash}{dash}port=3")


def test_pasted_quotes() -> None:
    assert "typographic quote" in refused("--override-generation-config", "{“top_k”: 3}")


def test_missing_values() -> None:
    assert refused("--port") == "--port needs a value."


def test_values_that_look_like_flags() -> None:
    assert given("--max-model-len", "-1").engine.max_model_len is None
    assert given("--api-key", "-secret").server.api_key == ("-secret",)


def test_lists() -> None:
    made = given("--alias", "a", "--served-model-name", "b,c", "-a", '["d"]')
    assert made.server.served_model_name == ("a", "b", "c", "d")


def test_dotted_json() -> None:
    made = given("--override-generation-config", '{"top_k": 3}', "--override-generation-config.temperature", "0.5")
    assert made.text.override_generation_config == {"top_k": 3, "temperature": 0.5}
    assert given("--override-generation-config.stop=a").text.override_generation_config == {"stop": "a"}


def test_verbose() -> None:
    assert given("-v").log.log_level == "debug"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    command = OptionCommand("serve", lambda settings: None, "Serve a model.")
    short, full = command.help_text("octavo serve"), command.help_text("octavo serve", "all")
    for each in all_options():
        assert f"{each.flag[2:]}" in full
        assert (f"{each.flag[2:]}" in short) or each.rare
    assert "--page-size" not in short and "--page-size" in full
    about = command.help_text("octavo serve", "max")
    assert "--max-model-len" in about and "--port" not in about
    assert "No option mentions 'zzz'" in command.help_text("octavo serve", "zzz")
    assert all(len(line) <= 110 for line in full.splitlines())
    assert command.main(["--help=port"], prog_name="octavo serve", standalone_mode=False) == 0
    assert "--port" in capsys.readouterr().out


def test_printed_configuration_reads_back(tmp_path: Path) -> None:
    flags = {
        "max_model_len": "32K", "served_model_name": "a,b", "step_time": "33.3", "temperature": "1e-5",
        "override_generation_config": '{"stop": ["#", "é"]}', "chat_template": "{{ x }}: '#'", "api_key": "sk-1",
    }  # fmt: skip
    settings = resolve(flags, {"OCTAVO_ARG_PORT": "9"})
    printed = to_yaml(settings)
    for line in ("step-time: 33.3  # from --step-time", "port: 9  # from OCTAVO_ARG_PORT", 'host: "127.0.0.1"'):
        assert f"\n{line}\n" in printed  # where a value comes from that is no default
    assert "sk-1" not in printed and "api-key: set, not printed" in printed
    file = tmp_path / "octavo.yaml"
    file.write_text(printed, encoding="utf-8")
    again = resolve({"config": str(file), "api_key": "sk-1"}, {})
    assert (again.engine, again.text, again.log) == (settings.engine, settings.text, settings.log)
    assert again.server.served_model_name == ("a", "b")


def test_the_page_of_options_is_current() -> None:
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == to_markdown(), "run: python3 dev docs"
