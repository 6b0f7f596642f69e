from __future__ import annotations

import re
import shlex

import pytest
from pages import blocks, commands, count_tests, files, read


@pytest.fixture
def tutorial():
    return read("docs/tutorial.md")


def test_outcomes_that_it_tells_follow_from_its_tests(tutorial):
    told = [(int(match[1]), match.start()) for match in re.finditer(r"`(\d+) passed`", tutorial)]
    assert [count for count, _ in told] == [count_tests(tutorial[:position]) for _, position in told]


def test_header_is_the_one_that_it_shows(reader, tutorial):
    (header,) = blocks(tutorial, "text")
    assert header.strip() in reader.pytest("--collect-only").outlines


def test_works_as_pasted(reader, tutorial):
    reader.paste(files(tutorial))
    program, *args = shlex.split(commands(tutorial)[-1])
    assert program == "pytest"
    told = re.findall(r"`(\d+) passed`", tutorial)[-1]
    reader.pytest(*args).assert_outcomes(passed=int(told))
