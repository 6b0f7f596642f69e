from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from pages import PAGES, README, ROOT, anchors, blocks, links, read

EXAMPLES = "python -m pip install . && python -m pytest examples --ipcluster-n=4\n"
TESTS = 'python -m pip install -e ".[test]" && python -m pytest -n 2 --dist loadfile\n'

MY_PROGRAM = """
import math

expected = [math.factorial(n) for n in range(20)]

def run(view):
    return view.map_sync(math.factorial, range(20))
"""


class TestPromise:
    def test_block_runs_as_it_stands(self, reader):
        text = read("README.md")
        (promise,) = blocks(text, "python")
        assert "`pytest --ipcluster-n=4`" in text
        reader.paste({"my_program.py": MY_PROGRAM, "test_promise.py": promise})
        reader.pytest("--ipcluster-n=4").assert_outcomes(passed=1)


class TestCommands:
    def test_there_are_exactly_two(self):
        assert blocks(read("README.md"), "sh") == [EXAMPLES, TESTS]

    def test_no_other_block_holds_a_command(self):
        assert [blocks(read("README.md"), language) for language in ("console", "bash", "shell")] == [[], [], []]

    def test_everything_they_name_exists(self):
        project = read("pyproject.toml")
        assert (ROOT / "examples").is_dir()
        assert "\ntest = [" in project
        assert 'testpaths = ["tests"]' in project


class TestCiRun:
    @pytest.fixture
    def show_command(self, tmp_path):
        """Ask a copy of .ci/run, beside a README with this text, for the command that it would run."""

        def show(text):
            (tmp_path / ".ci").mkdir()
            shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
            (tmp_path / "README.md").write_text(text, encoding="utf-8")
            return subprocess.run(
                [tmp_path / ".ci" / "run", "--show-command"],
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
                timeout=60,
            )

        return show

    def test_is_executable(self):
        assert os.access(ROOT / ".ci" / "run", os.X_OK)

    def test_runs_the_readmes_command(self, show_command):
        assert show_command(read("README.md")).stdout == TESTS

    def test_follows_the_readme(self, show_command):
        changed = read("README.md").replace(TESTS, "python -m pytest --version\n")
        assert show_command(changed).stdout == "python -m pytest --version\n"

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (f"```sh\n{TESTS}```\n", ""),
            (f"```sh\n{TESTS}```\n", f"```sh\n{TESTS}```\n" * 2),
            (f"```sh\n{TESTS}```\n", f"```sh\n{TESTS}{TESTS}```\n"),
            ("## Run the tests\n", "## Test it\n"),
            ("## Run the examples\n", "## Run the tests\n"),
        ],
        ids=["no block", "two blocks", "two lines", "no heading", "two headings"],
    )
    def test_refuses_a_readme_without_exactly_one_command(self, show_command, old, new):
        text = read("README.md")
        assert old in text
        result = show_command(text.replace(old, new))
        assert (result.returncode, result.stdout) == (1, "")
        assert "expected one command" in result.stderr


class TestLinks:
    @pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
    def test_point_to_what_exists(self, page):
        missing = [link for link in links(page.read_text(encoding="utf-8")) if not _exists(page, link)]
        assert missing == []

    def test_every_page_is_in_the_navigation(self):
        navigation = read("mkdocs.yml")
        pages = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page != README]
        assert [page for page in pages if f": {page}\n" not in navigation] == []


def _exists(page, link):
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    return target.is_file() and (not anchor or anchor in anchors(target.read_text(encoding="utf-8")))
