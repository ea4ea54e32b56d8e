"""`octavo verify MODEL`: does the native engine compute what the model says? Prints the report; exits 1 if it does not.

The checks are execution/verify.py's, which need torch; serving does not.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from octavo.cli.flags import OptionCommand
from octavo.cli.terminal import Progress, say
from octavo.config import EngineConfig, LogConfig
from octavo.errors import OctavoError
from octavo.settings import Settings, client_environment
from octavo.start import find_model


def run(settings: Settings, as_json: bool) -> None:
    """Check the model on a fixed prompt. Raises OctavoError at a deviation, after the report."""
    from octavo.execution.verify import verify  # once the name is known to be a model's

    progress = Progress(client_environment().plain)
    try:
        files = find_model(settings.engine, progress.report)
    finally:
        progress.close()
    say(f"checking {files.names[0]} node by node …")
    report = verify(files.path, settings.engine)
    if as_json:
        click.echo(json.dumps({"passed": report.passed, **asdict(report)}, indent=2, ensure_ascii=False))
    else:
        click.echo(report.table())
    if not report.passed:
        raise OctavoError(f"{files.names[0]} is not computed as its Program says: {report.first_deviation}")


command = OptionCommand(
    "verify",
    run,
    "Check every node of a model against its reference (needs torch), and how far the whole is from float32.",
    nouns=(EngineConfig, LogConfig),
    own=[click.Option(["--json", "as_json"], is_flag=True, help="the report as one JSON object")],
)
