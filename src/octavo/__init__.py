"""octavo: an inference server whose tokens depend on the request and on nothing else.

Importing it does no work: each public name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.async_llm import AsyncLLM
    from octavo.beam_search import BeamSearchParams
    from octavo.llm import LLM
    from octavo.request import RequestOutput
    from octavo.sampling_params import SamplingParams
    from octavo.start import start_in_process
    from octavo.structured_outputs import StructuredOutputsParams

__version__ = "0.1.0"
__all__ = [
    "LLM", "AsyncLLM", "BeamSearchParams", "RequestOutput", "SamplingParams", "StructuredOutputsParams", "__version__",
    "start_in_process",
]  # fmt: skip

_PLACES = {
    "LLM": "octavo.llm",
    "AsyncLLM": "octavo.async_llm",
    "BeamSearchParams": "octavo.beam_search",
    "RequestOutput": "octavo.request",
    "SamplingParams": "octavo.sampling_params",
    "StructuredOutputsParams": "octavo.structured_outputs",
    "start_in_process": "octavo.start",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
