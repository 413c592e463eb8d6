"""Tables of a comparison, worked out by hand from made-up results."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from report_runs import METRIC, RESULTS, result, ticket_rounds, write_results

from rgplug.report.cells import count, duration
from rgplug.report.pivot import Wanted, pivot_table
from rgplug.report.results import read_results
from rgplug.report.tables import cost_table, flops_table, rounds_table, sparsity_table, tables_of
from rgplug.report.texts import csv_text, markdown


def cells(table: Any, method: str) -> list[str]:
    """The texts of a method's row, without its name; the best of a column in stars."""
    number = next(i for i, row in enumerate(table.rows) if row[0].text == method)
    row = enumerate(table.rows[number])
    return [f"*{cell.text}*" if table.is_best(number, i) else cell.text for i, cell in row][1:]


@pytest.fixture
def comparison(tmp_path: Path) -> Any:
    return read_results(write_results(tmp_path, RESULTS))


def test_cost_until_the_best_value(comparison: Any) -> None:
    table = cost_table(comparison)
    assert [row[0].text for row in table.rows] == ["dense", "pf", "tickets", "broken"]  # dense first, then as written
    # means of (40, 44) and (46, 48); their deviations sqrt(8) and sqrt(2); 1 or 2 million images, pf 4 more before
    assert cells(table, "dense") == [
        "1.000", "1.000", "*1.50*", "*1.50e15*", "42.00 ± 2.83", "42.00", "sparse (1), dense (1)", "8", "2",
    ]  # fmt: skip
    assert cells(table, "pf") == [
        "0.100", "1.000", "5.00", "4.50e15", "47.00 ± 1.41", "46.00 (1 of 2 seeds)", "sparse", "8", "2",
    ]  # fmt: skip
    assert cells(table, "tickets") == [  # one seed has a value: no deviation
        "0.250", "1.000", "5.00", "8.00e15", "*41.00*", "*41.00*", "sparse", "10", "1 of 2, 1 diverged",
    ]  # fmt: skip
    assert cells(table, "broken") == ["0.200", "0.300", "–", "–", "diverged", "–", "–", "–", "0 of 1, 1 diverged"]
    notes = " ".join(table.notes)
    assert "N differs" in notes
    assert "advantage" in notes
    assert "tickets diverged in 1 of 2 runs (seed 1" in notes
    assert "tickets, seed 0: further evaluations without a finite value: 1" in notes


def test_equal_numbers_of_evaluations_need_no_warning(tmp_path: Path) -> None:
    table = cost_table(read_results(write_results(tmp_path, [*RESULTS[:4], RESULTS[-1]])))  # the last one diverged
    assert "best of N" in " ".join(table.notes)
    assert "advantage" not in " ".join(table.notes)


def test_the_number_of_evaluations_is_a_range_where_seeds_differ(tmp_path: Path) -> None:
    lines = [result("dense", 0, 4.0), result("dense", 1, 4.0, evaluations=6)]
    table = cost_table(read_results(write_results(tmp_path, lines)))
    assert cells(table, "dense")[7] == "6–8"
    assert "N differs" in " ".join(table.notes)


def test_metric_by_sparsity(comparison: Any) -> None:
    table = sparsity_table(comparison)
    assert cells(table, "pf") == ["0.0", "90.0", "47.00 ± 1.41", "2"]
    assert cells(table, "broken") == ["70.0", "80.0", "diverged", "0 of 1, 1 diverged"]


def test_flops_as_multiples_of_the_dense_run_of_the_same_seed(comparison: Any) -> None:
    table = flops_table(comparison)
    assert cells(table, "dense")[2:8] == ["4.00e15", "*4.00e15*", "1.00", "*1.00*", "3.00e9", "1.00"]
    assert cells(table, "pf")[2:8] == ["2.00e15", "6.00e15", "0.50", "1.50", "*3.00e8*", "*0.10*"]
    # own: (1 + 2) / 2 over 4; with what came before only seed 0 is known: (1 + 7) / 4
    assert cells(table, "tickets")[2:6] == ["*1.50e15*", "8.00e15 (1 of 2 seeds)", "*0.38*", "2.00 (1 of 2 seeds)"]
    assert cells(table, "broken")[2:6] == ["4.00e15", "*4.00e15*", "–", "–"]  # there is no dense run of seed 5
    assert "charged" in " ".join(table.notes)


def test_without_a_dense_run_flops_are_absolute(tmp_path: Path) -> None:
    table = flops_table(read_results(write_results(tmp_path, RESULTS[:2])))
    assert not any("dense," in column.title for column in table.columns)
    assert cells(table, "pf")[2:4] == ["2.00e15", "6.00e15"]
    assert "no dense run" in " ".join(table.notes)


def test_tickets_by_round(comparison: Any) -> None:
    table = rounds_table(comparison)
    assert [[cell.text for cell in row][1:] for row in table.rows] == [
        ["0", "1.000", "1.000", "42.00 ± 2.83", "2.00", "3.00e15", "2"],
        ["1", "0.500", "1.000", "44.00 ± 1.41", "2.00", "3.00e15", "2"],
        ["2", "0.250", "1.000", "41.00", "2.00", "3.00e15", "1 of 2, 1 diverged"],
    ]  # fmt: skip
    assert table.is_best(2, 4)


def test_no_table_of_rounds_without_tickets(tmp_path: Path) -> None:
    assert [t.key for t in tables_of(read_results(write_results(tmp_path, RESULTS[:4])))] == [
        "cost",
        "sparsity",
        "flops",
    ]


def test_where_higher_is_better_the_highest_is_bold(tmp_path: Path) -> None:
    lines = [result(m, 0, best, metric="is", higher_is_better=True) for m, best in (("dense", 8.0), ("pf", 7.0))]
    table = cost_table(read_results(write_results(tmp_path, lines)))
    assert "*8.00*" in cells(table, "dense")
    assert "7.00" in cells(table, "pf")
    assert "is (higher is better)" in [column.title for column in table.columns]


def test_values_that_read_alike_are_equally_good(tmp_path: Path) -> None:
    lines = [result(m, 0, best) for m, best in (("dense", 8.001), ("pf", 8.002), ("set", 9.0))]
    table = sparsity_table(read_results(write_results(tmp_path, lines)))
    assert [cells(table, m)[2] for m in ("dense", "pf", "set")] == ["*8.00*", "*8.00*", "9.00"]


def test_small_numbers_keep_their_digits(tmp_path: Path) -> None:
    lines = [result("dense", s, best, real_images=320, flops=0.0) for s, best in ((0, 0.0123), (1, 0.0125))]
    row = cells(cost_table(read_results(write_results(tmp_path, lines))), "dense")
    assert row[2:5] == ["0.320", "0", "0.0124 ± 0.0001"]


def test_real_images_are_in_thousands_where_none_is_a_million(tmp_path: Path) -> None:
    """FastGAN's runs (RG-GAN, Table 4): 360 thousand; a ticket with what came before it may reach a million."""
    rounds = [
        {**r, "real_images": 3.6e5, "real_images_total": 4e5, "flops_total": 4e15} for r in ticket_rounds(40.0, 43.0)
    ]
    lines = [result("dense", 0, 40.0, real_images=3.6e5), result("tickets", 0, 41.0, real_images=2e4, rounds=rounds)]
    c = read_results(write_results(tmp_path, lines))
    assert "#RI, thousand" in [column.title for column in cost_table(c).columns]
    assert "*360*" not in cells(cost_table(c), "dense")
    assert "360" in cells(cost_table(c), "dense")
    assert [cells[5].text for cells in rounds_table(c).rows] == ["360", "360"]
    assert [cells[7].text for cells in rounds_table(c).rows] == ["360", "760"]  # 400 whole, and 360
    lines[1]["rounds"] = [{**r, "real_images_total": 9e5} for r in rounds]
    c = read_results(write_results(tmp_path, lines))
    assert [cells[5].text for cells in rounds_table(c).rows] == ["0.360", "0.360"]
    assert [cells[7].text for cells in rounds_table(c).rows] == ["0.360", "1.26"]


def test_where_dense_runs_stand_is_said_only_where_there_are_any(tmp_path: Path) -> None:
    wanted = Wanted(columns=("density.G",))
    lines = [result("stu-gan", 0, 40.0, keys={"density.G": 0.1}), result("dense", 0, 41.0)]
    notes = [
        " ".join(pivot_table(read_results(write_results(tmp_path / name, own)), wanted).notes)
        for name, own in (("without", lines[:1]), ("with", lines))
    ]
    assert ["Dense runs" in text for text in notes] == [False, True]


def test_zeros_that_are_digits_stay() -> None:
    assert [duration(s) for s in (11.04, 5.0, 99.96, 36000.0)] == ["11.0", "5.00", "100", "36000"]
    assert [count(n) for n in (85, 44_000, 44_549, 999_900)] == ["85", "44.0k", "44.5k", "1000k"]


@pytest.mark.parametrize(("density", "phase"), [(1.0, "dense"), (0.3, "sparse")])
def test_phase_of_re_gan(density: float, phase: str, tmp_path: Path) -> None:
    """Its dense phases come by steps, and its records say sparse; D is dense throughout."""
    keys = {"method": "re-gan", "cycle.networks": "G"}
    line = result("re-gan", 0, 40.0, density={"G": density, "D": 1.0}, keys=keys)
    table = cost_table(read_results(write_results(tmp_path, [line])))
    at = [column.title for column in table.columns].index("Best in phase")
    assert table.rows[0][at].text == phase


def test_csv_parsed_back(comparison: Any) -> None:
    rows = list(csv.DictReader(csv_text(comparison, tables_of(comparison)).splitlines()))
    assert [(r["table"], r["method"]) for r in rows[:5]] == [
        ("cost", "dense"), ("cost", "pf"), ("cost", "tickets"), ("cost", "broken"), ("sparsity", "dense"),
    ]  # fmt: skip
    pf = rows[1]
    assert (pf["metric"], pf["samples"], pf["seeds"], pf["diverged"]) == (METRIC, "5000", "2", "0")
    assert float(pf["metric_mean"]) == 47
    assert float(pf["metric_sd"]) == pytest.approx(2**0.5)
    assert float(pf["real_images"]) == 5e6
    assert float(pf["training_flops"]) == 4.5e15
    assert rows[3]["metric_mean"] == ""
    flops = next(r for r in rows if r["table"] == "flops" and r["method"] == "pf")
    assert float(flops["training_multiple_with_before"]) == 1.5
    assert flops["metric_mean"] == ""  # not a column of that table
    assert [r["round"] for r in rows if r["table"] == "rounds"] == ["0", "1", "2"]


def test_markdown(comparison: Any) -> None:
    text = markdown(tables_of(comparison))
    assert "## Cost until the best value (in the form of RG-GAN, Table 5)\n\n| Method | Density G |" in text
    assert "| dense | 0.0 | 0.0 | 42.00 ± 2.83 | 2 |\n| pf | 0.0 | 90.0 | 47.00 ± 1.41 | 2 |" in text
    assert "| **41.00** |" in text
    assert "- There is no dense run" not in text
    widths = {line.count("|") for line in text.split("## ")[1].splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_a_metric_is_called_fid_only_where_it_is(tmp_path: Path) -> None:
    assert "FID" not in markdown(tables_of(read_results(write_results(tmp_path, RESULTS))))
    lines = [line | {"metric": "fid"} for line in RESULTS]
    assert "FID (lower is better)" in markdown(tables_of(read_results(write_results(tmp_path, lines))))
