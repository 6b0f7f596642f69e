from __future__ import annotations

import pytest
from pages import DOCS, count_tests, files

SCRIPTS = ("background.py", "watched.py", "muted.py", "own_loop.py", "guarded.py")


@pytest.fixture
def pasted(reader):
    """The files of all how-to pages in one folder."""
    pasted = {}
    for page in sorted((DOCS / "howto").glob("*.md")):
        new = files(page.read_text(encoding="utf-8"))
        assert not new.keys() & pasted.keys()
        pasted |= new
    reader.paste(pasted)
    return pasted


def test_tests_pass(reader, pasted):
    expected = sum(count_tests(source) for name, source in pasted.items() if name.startswith("test_"))
    reader.pytest().assert_outcomes(passed=expected)


def test_scripts_run(reader, pasted):
    assert set(SCRIPTS) <= pasted.keys()
    assert reader.scripts(*SCRIPTS) == {
        "background.py": (0, "the cluster is gone with 0\n"),
        "watched.py": (0, "the monitor saw one engine die\n"),
        "muted.py": (0, "failed and returned, and never stopped beating\n"),
        "own_loop.py": (0, "a new heart: me\nit failed: me\n"),
        "guarded.py": (0, "nobody answers: controller killed by SIGKILL\n"),
    }
