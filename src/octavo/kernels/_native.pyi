"""The native module is built from native/bindings.cc, which says its names; library.py gives them types."""

from typing import Any

def __getattr__(name: str) -> Any: ...
