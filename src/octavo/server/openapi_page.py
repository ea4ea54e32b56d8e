"""/docs: the OpenAPI document as a page to read, of one file and without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code { font-size: 90% } summary { cursor: pointer } .open { opacity: 0.6 }
td { padding: 0 1em 0 0; vertical-align: top }
"""


def page(document: Mapping[str, Any]) -> str:
    """A line for each route, which opens to the fields of its body."""
    schemas, info = document["components"]["schemas"], document["info"]
    routes = [
        _route(path, method, operation, schemas)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    title = escape(f"{info['title']} {info['version']}")
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>\n'
        f'<h1>{title}</h1>\n<p>The same as <a href="openapi.json">openapi.json</a>.</p>\n' + "\n".join(routes)
    )


def _route(path: str, method: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    public = "" if "security" in operation else ' <span class="open">no key needed</span>'
    line = f"<code><b>{method.upper()}</b> {escape(path)}</code> {escape(operation['summary'])}{public}"
    contents = operation.get("requestBody", {}).get("content", {})
    schema = next((content["schema"] for content in contents.values()), None)
    if schema is None:
        return f"<p>{line}</p>"
    schema = schemas.get(schema.get("$ref", "").rpartition("/")[2], schema)
    needed = schema.get("required", ())
    fields = [
        f"<tr><td><code>{escape(name)}</code>{'*' if name in needed else ''}</td>"
        f"<td>{escape(_kind(each))}</td><td>{escape(each.get('description', ''))}</td></tr>"
        for name, each in schema.get("properties", {}).items()
    ]
    return f"<details><summary>{line}</summary><table>{''.join(fields)}</table></details>"


def _kind(schema: Mapping[str, Any]) -> str:
    """The type of a field in a word."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    kind = schema.get("type", "")
    told = " or ".join(kind) if isinstance(kind, list) else str(kind)
    return f"list of {_kind(schema['items'])}" if told == "array" and schema.get("items") else told
