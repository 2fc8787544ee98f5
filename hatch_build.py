"""What a package index shows: README.md, without what leads into the repository, for which an index has no files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_NO_LINKS = "\nThe pages that are named here, with their pictures, are in the source distribution.\n"
_INTO_THE_REPOSITORY = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")


class IndexReadme(MetadataHookInterface):
    """Sets `readme`; hatchling finds this class in this file."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Lead links to `project.urls.Repository`; as long as there is none, keep their words, and no pictures."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        repository = metadata.get("urls", {}).get("Repository")

        def led(link: re.Match[str]) -> str:
            picture, words, target = link.groups()
            if repository:
                kind = "raw" if picture else "blob"
                return f"{picture}[{words}]({repository.rstrip('/')}/{kind}/main/{target})"
            return "" if picture else words

        text = re.sub(r"\n{3,}", "\n\n", _INTO_THE_REPOSITORY.sub(led, text))
        metadata["readme"] = {"content-type": "text/markdown", "text": text if repository else text + _NO_LINKS}
