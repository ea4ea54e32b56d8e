"""`octavo show MODEL`: what a model is, from its headers, in Ollama's sections. It loads and downloads nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.checkpoints.describe import Description, describe
from octavo.cli.flags import OptionCommand
from octavo.cli.terminal import columns, size
from octavo.config import EngineConfig
from octavo.errors import ModelNotFound, OctavoError, UnsupportedModel
from octavo.models.registry import build
from octavo.settings import Settings
from octavo.start import find_model

LONGEST = 100  # characters of a value that is shown


def run(settings: Settings, as_json: bool, template: bool, tensors: bool) -> None:
    """Print the sections, or a JSON object; with --template that text alone."""
    try:
        files = find_model(replace(settings.engine, offline=True))
    except ModelNotFound as error:
        if "--offline is set" not in error.message:
            raise
        model = settings.engine.model
        raise ModelNotFound(
            f"{model} is not on this machine, or not whole: octavo pull {model} fetches it", param="model"
        ) from error
    found = describe(files.path)
    found = replace(found, sampling={**files.generation, **found.sampling})
    if template:
        click.echo(found.template or "", nl=bool(found.template))
        return
    why_not = refusal(files.path)
    if as_json:
        click.echo(json.dumps(as_data(found, files.names, why_not, tensors), indent=2, ensure_ascii=False, default=str))
        return
    for line in page(found, why_not, tensors):
        click.echo(line)


def refusal(path: Path) -> str | None:
    """Why octavo cannot serve the model; None where it can."""
    try:
        build(open_checkpoint(path), positions=16)
    except UnsupportedModel as error:
        return error.message
    except OctavoError as error:
        return f"broken: {error.message}"
    return None


def page(found: Description, why_not: str | None, tensors: bool) -> list[str]:
    """The sections."""
    head = [
        ("name", found.name),
        ("architecture", found.architecture),
        ("parameters", count(found.parameters)),
        *((word, f"{number:,}") for word, number in found.shape.items()),
        ("quantization", found.quantization),
        ("size", size(found.nbytes)),
        ("served", "yes" if why_not is None else f"no: {why_not}"),
    ]
    weights = [
        (
            each.format,
            f"{each.tensors:,} tensors",
            size(each.nbytes),
            f"{8 * each.nbytes / each.elements:.4g} bits a weight",
        )
        for each in found.formats
        if each.elements
    ]
    parameters = [("stop", json.dumps(each, ensure_ascii=False)) for each in found.stop]
    parameters += [(name, f"{value:g}") for name, value in found.sampling.items()]
    lines = []
    for title, rows in (
        ("Model", head),
        ("Weights", weights),
        ("Capabilities", [(each,) for each in found.capabilities]),
        ("Parameters", parameters),
        (
            "Template",
            [(f"{len(found.template):,} characters", "octavo show --template prints it")] if found.template else [],
        ),
        ("License", [(found.license[:LONGEST],)] if found.license else []),
        ("Files", [(str(each),) for each in found.files]),
    ):
        lines += _section(title, rows)
    if tensors:
        listed = [
            (each.name, each.format, " x ".join(map(str, each.shape)), size(each.nbytes))
            for each in found.tensors.values()
        ]
        keys = [(key, str(value)[:LONGEST].replace("\n", " ")) for key, value in found.metadata.items()]
        lines += _section("Keys", keys) + _section("Tensors", listed)
    return lines


def _section(title: str, rows: list[Any]) -> list[str]:
    return [f"  {title}", *(f"    {line.rstrip()}" for line in columns(rows, between="   ")), ""] if rows else []


def count(number: int) -> str:
    """`134.5M`, `1.8B`, as Ollama writes it."""
    if number >= 10**9:
        return f"{number / 1e9:.1f}B"
    return f"{number / 1e6:.1f}M" if number >= 10**6 else f"{number / 1e3:.1f}K"


def as_data(found: Description, names: tuple[str, ...], why_not: str | None, tensors: bool) -> dict[str, Any]:
    """For --json: sizes in bytes."""
    data: dict[str, Any] = {
        "name": found.name,
        "names": names,
        "format": found.kind,
        "architecture": found.architecture,
        "parameters": found.parameters,
        "quantization": found.quantization,
        "size": found.nbytes,
        **{word.replace(" ", "_").lower(): number for word, number in found.shape.items()},
        "formats": [
            {"format": each.format, "tensors": each.tensors, "parameters": each.elements, "size": each.nbytes}
            for each in found.formats
        ],
        "capabilities": found.capabilities,
        "stop": found.stop,
        "sampling": dict(found.sampling),
        "license": found.license,
        "template": found.template,
        "files": [str(each) for each in found.files],
        "served": why_not is None,
        "refusal": why_not,
        "metadata": dict(found.metadata),
    }
    if tensors:
        data["tensors"] = [
            {"name": each.name, "format": each.format, "shape": each.shape, "size": each.nbytes, "file": each.file.name}
            for each in found.tensors.values()
        ]
    return data


command = OptionCommand(
    "show",
    run,
    "What a model on this machine is: architecture, parameters, context, formats, capabilities, licence.",
    nouns=(EngineConfig,),
    own=[
        click.Option(["--json", "as_json"], is_flag=True, help="a JSON object, with all keys of the header"),
        click.Option(["--template"], is_flag=True, help="the chat template alone"),
        click.Option(["--tensors"], is_flag=True, help="all keys and tensors too"),
    ],
)
