"""Build hook of the Python package: makes the browser kit's static files from TypeScript and CSS."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CONFIGURATION = (".npmrc", "package.json", "package-lock.json", "tsconfig.json")
OUTPUTS = ("static/hub/hub.js", "static/hub/hub.css")


class FrontEndBuildHook(BuildHookInterface[BuilderConfig]):
    """Runs `npm ci` and `npm run build` in the folder of this file, unless the outputs are up to date.

    Up to date means that sources and outputs have the fingerprints noted at the last build: unlike file
    times, these hold across checkouts, copies and archives.
    """

    def dependencies(self) -> list[str]:
        """What has to be installed for the build: nothing when there is nothing to do."""
        return [] if self._is_up_to_date() else [self.config["node"]]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the outputs; end the build with a plain message when npm is missing or fails."""
        if self._is_up_to_date():
            return
        # Taken before the build, so that a source saved meanwhile is seen by the next one.
        sources = self._fingerprint_of_sources()
        self._npm("ci", "--include=dev")
        self._npm("run", "build")
        self._noted.write_text(f"{sources}\n{self._fingerprint_of_outputs()}\n")

    @property
    def _folder(self) -> Path:
        return Path(self.root, self.config["path"]).parent

    @property
    def _noted(self) -> Path:
        return self._folder / ".fingerprint"

    def _is_up_to_date(self) -> bool:
        made = (self._noted, *(self._folder / name for name in OUTPUTS))
        if not all(path.is_file() for path in made):
            return False
        fingerprints = [self._fingerprint_of_sources(), self._fingerprint_of_outputs()]
        return self._noted.read_text().split() == fingerprints

    def _fingerprint_of_sources(self) -> str:
        sources = sorted(path for path in (self._folder / "src").rglob("*") if path.is_file())
        return self._fingerprint(*(self._folder / name for name in CONFIGURATION), *sources)

    def _fingerprint_of_outputs(self) -> str:
        return self._fingerprint(*(self._folder / name for name in OUTPUTS))

    def _fingerprint(self, *paths: Path) -> str:
        digest = hashlib.sha256()
        for path in paths:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(self._folder).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()

    def _npm(self, *arguments: str) -> None:
        command = " ".join(("npm", *arguments))
        executable = shutil.which("npm")
        if executable is None:
            sys.exit(
                f"The front end cannot be built: there is no npm to run `{command}` with.\nBuild with build "
                f"isolation (pip's default), or install {self.config['node']} or Node.js first."
            )
        # The arguments are those of the two calls above.
        finished = subprocess.run([executable, *arguments], cwd=self._folder, check=False)  # noqa: S603
        if finished.returncode != 0:
            sys.exit(
                f"The front end could not be built: `{command}` in {self._folder} ended with exit code "
                f"{finished.returncode}.\nWhat npm said stands above; `npm ci` downloads packages."
            )
