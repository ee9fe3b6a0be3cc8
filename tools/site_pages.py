"""The pages of the site that are not files in docs/; mkdocs.yml names this as a hook."""

import collections
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from flaxattn.attention import ATTENTION
from flaxattn.attention.mechanism import layer_of

ROOT = Path(__file__).parent.parent
FILES = {
    "README.md": "index.md",
    "README.zh.md": "index.zh.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}

_HEAD = """\
# Mechanisms

The names below each are those that `create_attention` takes ([all in a table](../mechanisms.md)).
"""


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of `FILES`, from the root of the repository, and that of the mechanisms."""
    for name, page in FILES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=from_root(text, config.repo_url)))
    files.append(File.generated(config, "api/attention.md", content=mechanisms()))
    return files


def mechanisms() -> str:
    """The page with each class of ATTENTION, and the names that it has there."""
    names = collections.defaultdict(list)
    for name, made in ATTENTION.items():
        names[layer_of(made)].append(f"`{name}`")
    options = "    options: { show_root_heading: true, heading_level: 2 }"
    sections = [
        f"::: {layer.__module__}.{layer.__name__}\n{options}\n\nNames: {', '.join(known)}.\n"
        for layer, known in sorted(names.items(), key=lambda item: item[0].__name__)
    ]
    return "\n".join([_HEAD, f"::: flaxattn.attention.create_attention\n{options}\n", *sections])


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """A page of docs/ with its links to what is above docs/."""
    if page.file.src_uri == "mechanisms.md":
        page.meta["hide"] = ["toc"]  # its table needs the room
    if "/" in page.file.src_uri:
        return markdown

    def target(match: re.Match[str]) -> str:
        return from_root(f"]({match[1]})", config.repo_url)

    return re.sub(r"\]\(\.\./([^)]*)\)", target, markdown)


def from_root(text: str, repository: str) -> str:
    """A file of the root with its links as they are from docs/."""

    def target(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        if path in FILES:
            return f"]({FILES[path]}{anchor})"
        if path.startswith("docs/"):
            return f"]({path.removeprefix('docs/')}{anchor})"
        return f"]({repository}/blob/main/{path}{anchor})"

    return re.sub(r"\]\((?!https?://|#)([^)#]+)(#[^)]*)?\)", target, text)
