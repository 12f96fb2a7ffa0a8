"""Build hook: write the commit that the package is built from into the wheel or the source distribution.

The file is ``cnnjob/commit.json``, from which :mod:`cnnjob.runs.commit` reads the commit where there is no clone. An
editable installation gets no such file, since its code is that of the clone.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface):  # type: ignore[type-arg,misc]
    """Adds the commit to what is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the commit to a temporary file, and have it included."""
        sys.path.insert(0, self.root)
        from cnnjob.runs.commit import COMMIT_FILE, find_commit  # noqa: PLC0415 - of the tree that is built

        # a source distribution that is built into a wheel already has the file
        if version != "editable" and not Path(self.root, "cnnjob", COMMIT_FILE).exists():
            self._folder = TemporaryDirectory()
            path = Path(self._folder.name, COMMIT_FILE)
            path.write_text(json.dumps(find_commit(), indent=2) + "\n", encoding="utf-8")
            build_data["force_include"][str(path)] = f"cnnjob/{COMMIT_FILE}"
