"""What the documentation's pages hold: code blocks, the files that they make up, links and sections."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Return the contents of the fenced blocks in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def files(text: str) -> dict[str, str]:
    """Return the files that the page's Python blocks make up; a block tells its file in its first line."""
    found: dict[str, str] = {}
    for block in blocks(text, "python"):
        if match := re.match(r"# (\S+\.py)\n", block):
            found[match[1]] = found.get(match[1], "") + block[match.end() :] + "\n\n"
    return found


def commands(text: str) -> list[str]:
    """Return what is typed at the prompt in console blocks."""
    return [line[2:] for block in blocks(text, "console") for line in block.splitlines() if line.startswith("$ ")]


def count_tests(source: str) -> int:
    return len(re.findall(r"^ *def test_", source, re.MULTILINE))


def links(text: str) -> list[str]:
    """Return the targets of the links that stay in this repository."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as mkdocs makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def sections(text: str) -> dict[str, str]:
    """Return the text below each heading, by the heading without its backticks."""
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {heading.replace("`", ""): body for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


def rows(text: str) -> list[list[str]]:
    """Return the cells of all tables, without the headings' rows."""
    found = re.findall(r"^\|(?!---)(.*)\|$(?!\n\|---)", text, re.MULTILINE)
    return [[cell.strip() for cell in row.split(" | ")] for row in found]


def table_names(text: str) -> set[str]:
    """Return the names in the first columns of all tables, without their parameters."""
    return {name for row in rows(text) for name in re.findall(r"`@?([\w.-]+)", row[0])}
