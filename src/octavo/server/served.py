"""The model that is served, by its files: what management routes tell of it.

Headers are read when somebody asks for the first time.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from octavo.checkpoints.describe import Description, describe
from octavo.config import EngineConfig


@dataclass
class Served:
    """path: its file or folder; engine: how it was asked for."""

    path: Path
    engine: EngineConfig
    _description: Description | None = field(default=None, repr=False)

    async def description(self) -> Description:
        """Read in a thread: the vocabulary of a GGUF file takes up to 0.3 s."""
        if self._description is None:
            self._description = await asyncio.to_thread(describe, self.path)
        return self._description

    async def modified(self) -> str:
        """RFC 3339."""
        files = (await self.description()).files
        return datetime.fromtimestamp(max(file.stat().st_mtime for file in files), UTC).isoformat()

    async def digest(self) -> str:
        """64 hex digits that stand for these files, by names and sizes: reading a model's bytes takes minutes."""
        files = (await self.description()).files
        named = "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
        return hashlib.sha256(named.encode()).hexdigest()
