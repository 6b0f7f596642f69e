"""The benchmarks' common parts and the reading of their arguments; nothing here measures anything."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from waiting import until

from pytest_ipcluster.cluster.processes import wait_gone
from pytest_ipcluster.hearts.thread import MonitorThread

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PAGE = BENCHMARKS.parent / "docs" / "reference" / "benchmarks.md"

#: Modules that are no benchmark themselves.
PARTS = {"common", "leashes", "nursery", "monitor_hosts", "plain_ledger", "starters"}
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in PARTS)


@pytest.fixture
def common(load_benchmark):
    return load_benchmark("common")


class TestArguments:
    @pytest.mark.parametrize("script", SCRIPTS)
    def test_every_script_has_help(self, script):
        done = subprocess.run(
            [sys.executable, BENCHMARKS / f"{script}.py", "--help"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "usage: " in done.stdout

    @pytest.mark.parametrize("script", SCRIPTS)
    def test_every_script_is_in_the_documentation(self, script):
        assert f"benchmarks/{script}.py" in PAGE.read_text(encoding="utf-8")

    def test_five_rounds_and_no_file_are_the_default(self, common):
        options = common.parser("Doc.").parse_args([])
        assert (options.rounds, options.json) == (5, None)

    @pytest.mark.parametrize("rounds", ["0", "-1", "many"])
    def test_there_is_at_least_one_round(self, common, rounds, capsys):
        with pytest.raises(SystemExit):
            common.parser("Doc.").parse_args(["--rounds", rounds])
        assert "--rounds" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("text", "name", "traits"),
        [
            ("local", "local", {"launcher": "local"}),
            ("default", "default", {}),
            ("mine=default", "mine", {}),
            ("spare=forkserver,spares=1", "spare", {"launcher": "forkserver", "spares": 1}),
            ("x=local,extra_args=['--log-level=10']", "x", {"launcher": "local", "extra_args": ["--log-level=10"]}),
            ("x=local,profile=other", "x", {"launcher": "local", "profile": "other"}),
        ],
    )
    def test_a_cluster_of_ours_is_a_name_and_its_traits(self, common, text, name, traits):
        assert common.named(text) == (name, traits)

    @pytest.mark.parametrize("text", ["x=local,spares", "=local,spares=1", "x=local,=1"])
    def test_a_trait_without_name_or_value_is_refused(self, common, text):
        with pytest.raises(argparse.ArgumentTypeError, match="is not NAME"):
            common.named(text)

    def test_settings_are_all_options_but_the_file(self, common):
        options = argparse.Namespace(rounds=3, json=Path("x"), n=4)
        assert common.settings(options) == {"rounds": 3, "n": 4}


class TestFigures:
    def test_contestants_take_turns(self, common):
        turns = []
        contestants = {"A": lambda: turns.append("A") or 1, "B": lambda: turns.append("B") or 2}
        assert common.interleave(contestants, 3) == {"A": [1, 1, 1], "B": [2, 2, 2]}
        assert turns == ["A", "B"] * 3

    @pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (0.001, 1), (1.0, 100)])
    def test_percentile_is_one_of_the_figures(self, common, share, expected):
        assert common.percentile(list(range(100, 0, -1)), share) == expected

    def test_ratio_is_our_share_of_the_peers(self, common):
        assert common.Row("x", "s", 1.0, 4.0, "peer").ratio == 0.25
        assert common.Row("x", "s", 1.0).ratio is None

    @pytest.mark.parametrize(
        ("ours", "limits", "reached"),
        [
            (1.0, {}, None),
            (1.0, {"limit": 1.0}, True),
            (1.1, {"limit": 1.0}, False),
            (1.0, {"limit_ratio": 0.25}, True),
            (1.1, {"limit_ratio": 0.25}, False),
            (1.0, {"limit": 0.5, "limit_ratio": 0.25}, False),
        ],
    )
    def test_reached_means_within_every_limit(self, common, ours, limits, reached):
        assert common.Row("x", "s", ours, 4.0, "peer", **limits).reached is reached

    def test_a_line_says_all_of_it(self, common):
        row = common.Row("start", "s", 1.234, 4.936, "theirs", limit_ratio=0.2)
        assert common.cells(row) == ("start", "1.23 s", "4.94 s (theirs)", "0.25", "ratio ≤ 0.2: no")
        assert [cell.strip() for cell in common.lines([row])[1].split("  ") if cell] == list(common.cells(row))

    def test_file_holds_rows_runs_and_a_machine_without_a_name(self, common, tmp_path, capsys):
        file = tmp_path / "made" / "start.json"
        row = common.Row("start", "s", 1.0, 4.0, "theirs", limit_ratio=0.25)
        common.report("somewhere/start.py", [row], file=file, settings={"n": 4}, runs={"A": [1.0]})
        content = json.loads(file.read_text())
        assert (content["benchmark"], content["settings"], content["runs"]) == ("start", {"n": 4}, {"A": [1.0]})
        assert (content["rows"][0]["ratio"], content["rows"][0]["reached"]) == (0.25, True)
        assert content["machine"]["cores"] == os.cpu_count()
        assert platform.node() not in json.dumps(content["machine"])
        assert "start" in capsys.readouterr().out


class TestHearts:
    @pytest.fixture
    def monitor(self):
        thread = MonitorThread(period=50.0, misses=100)
        thread.start()
        yield thread
        thread.stop()

    @pytest.mark.parametrize("spread", [0.0, 0.02])
    def test_generated_hearts_are_heard_over_tcp(self, load_benchmark, monitor, spread):
        with load_benchmark("hearts_load").Load(
            monitor.ping_url, monitor.pong_url, hearts=7, processes=2, spread=spread, seconds=60
        ) as made:
            for number in range(7):
                monitor.wait_for_heart(b"heart-%05d" % number)
            until(lambda: made.answers() >= 7)  # what is sent is counted a moment later
            # One that sends anything but what it has heard would be counted here.
            assert (monitor.monitor.bad_messages, monitor.monitor.ledger.tally["stale"]) == (0, 0)

    def test_generated_hearts_end_with_the_block(self, load_benchmark, monitor):
        others = psutil.Process().children()
        with load_benchmark("hearts_load").Load(monitor.ping_url, monitor.pong_url, hearts=2, processes=2, seconds=60):
            made = set(psutil.Process().children()) - set(others)
            assert len(made) == 2
        assert wait_gone(made, 10) == set()

    @pytest.mark.parametrize(("total", "parts"), [(10, 4), (3, 4), (9000, 4), (1, 1)])
    def test_shares_are_almost_equal_and_add_up(self, load_benchmark, total, parts):
        found = load_benchmark("hearts_load").shares(total, parts)
        assert (sum(found), len(found)) == (total, parts)
        assert max(found) - min(found) <= 1

    def test_nursery_makes_hearts_that_end_with_it(self, load_benchmark, monitor):
        with load_benchmark("nursery").Nursery(monitor.ping_url, monitor.pong_url) as nursery:
            made = [psutil.Process(pid) for pid in nursery.bear([b"one", b"two"])]
            monitor.wait_for_heart(b"one")
            monitor.wait_for_heart(b"two")
        assert wait_gone(made, 10) == set()


class TestMonitorCost:
    def test_gaps_tell_late_and_skipped_beats(self, load_benchmark):
        found = load_benchmark("monitor_cost").judge_beats([0.1, 0.14, 0.16, 0.1, 0.31], 0.1)
        assert (found["beats"], found["late"], found["skipped"]) == (5, 2, 3)
        assert found["longest_gap"] == 0.31

    def test_cost_is_what_was_spent_between_two_accounts(self, load_benchmark):
        before, after = {"python": 1.0, "process": 2.0}, {"python": 1.5, "process": 4.0, "failed": 3}
        found = load_benchmark("monitor_cost").cost(before, after, 1_000_000, 10.0)
        assert (found["python_us"], found["total_us"], found["share_of_a_core"]) == (0.5, 2.0, 0.2)
        assert found["false_verdicts"] == 3

    def test_nothing_answered_is_no_measurement(self, load_benchmark):
        with pytest.raises(SystemExit, match="no ping was answered"):
            load_benchmark("monitor_cost").cost({}, {}, 0, 1.0)


class TestTable:
    @pytest.fixture
    def table(self, load_benchmark):
        return load_benchmark("table")

    @pytest.fixture
    def folder(self, common, tmp_path):
        """Figures of one benchmark: a row for the table, and a minor one."""
        rows = [
            common.Row("start of 4", "s", 1.0, 4.0, "theirs", limit_ratio=0.25),
            common.Row("detail", "s", 1.0, minor=True),
        ]
        common.report("start.py", rows, file=tmp_path / "start.json", settings={"rounds": 7}, runs={})
        return tmp_path

    def test_shows_rows_and_machine_but_nothing_minor(self, table, folder):
        text = table.block(table.read(folder))
        assert "| start of 4 | 1 s | 4 s (theirs) | 0.25 | ratio ≤ 0.25: yes |\n" in text
        assert f"Python {platform.python_version()}" in text
        assert "Turns of each: start 7.\n" in text
        assert "detail" not in text

    def test_tells_what_is_not_there(self, table, folder, capsys):
        table.read(folder)
        assert "no repair.json" in capsys.readouterr().err

    def test_an_empty_folder_is_refused(self, table, tmp_path):
        with pytest.raises(SystemExit, match="no figures"):
            table.read(tmp_path)

    def test_figures_of_two_machines_are_refused(self, table, folder):
        other = json.loads((folder / "start.json").read_text())
        other["benchmark"], other["machine"]["cores"] = "stop", 64
        (folder / "stop.json").write_text(json.dumps(other))
        with pytest.raises(SystemExit, match="different machines"):
            table.block(table.read(folder))

    def test_replaces_what_is_between_the_marks_again_and_again(self, table):
        page = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
        once = table.replace(page, "new\n")
        assert once == f"before\n{table.BEGIN}\n\nnew\n\n{table.END}\nafter\n"
        assert table.replace(once, "new\n") == once

    @pytest.mark.parametrize(
        "marks", [[], ["BEGIN"], ["END", "BEGIN"], ["BEGIN", "END", "BEGIN"], ["BEGIN", "END", "END"]]
    )
    def test_a_page_without_exactly_one_place_is_refused(self, table, marks):
        page = "\n".join(getattr(table, mark) for mark in marks)
        with pytest.raises(SystemExit, match="once each"):
            table.replace(page, "new")

    def test_two_pages_have_a_place_for_it(self, table):
        for page in (table.README, table.ALL):
            assert table.replace(page.read_text(encoding="utf-8"), "a new one").count("a new one") == 1

    def test_shows_only_rows_that_are_wanted(self, table, folder):
        assert "start of 4" in table.block(table.read(folder))
        assert "start of 4" not in table.block(table.read(folder), ("repair",))
