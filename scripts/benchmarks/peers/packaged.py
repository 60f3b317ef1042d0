"""Servers that aren't Python's: they come as the Debian package of their name, and -v tells their version."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import ClassVar

from .base import Peer, PeerUnavailable


class Packaged(Peer):
    """One of them. `told_as`: how -v tells the version, a pattern with one group."""

    told_as: ClassVar[str]

    def prepare(self) -> None:
        """`scripts/bench` installs the Debian package."""
        if shutil.which(self.name) is None:
            raise PeerUnavailable(f"{self.name} isn't installed (apt-get install {self.name})")

    def version(self) -> str:
        """The version that -v tells, on whichever of its outputs."""
        told = subprocess.run([self.name, "-v"], capture_output=True, text=True, check=False)
        found = re.search(self.told_as, told.stdout + told.stderr)
        return found.group(1) if found else "unknown"
