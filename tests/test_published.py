"""The published tables of accuracies hold what lies under results/."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

import evaluate

ROOT = Path(__file__).parent.parent
NAMES = {"simclr": "SimCLR", "moco": "MoCo v2", "byol": "BYOL", "simsiam": "SimSiam"}


def arms(folder, method, measure):
    """(augmented, semantic, untrained): the values of the seeds in order, from the comparison in a folder of results."""
    with open(ROOT / "results" / folder / "comparison.csv") as file:
        rows = [row for row in csv.DictReader(file) if (row["method"], row["measure"]) == (method, measure)]
    value_of = lambda arm: {int(row["seed"]): float(row["value"]) for row in rows if row["arm"] == arm}
    found = [value_of(arm) for arm in ("augmented", "semantic", "untrained")]
    assert found[0] and found[0].keys() == found[1].keys()
    return [np.array([each[seed] for seed in sorted(each)]) for each in found]


def mean_and_std(values, sign=""):
    return f"{np.mean(values):{sign}.3f} ± {np.std(values, ddof=1):.3f}"


def row_of(table, method):
    """The cells of a method's row of one of README's tables, after its name; table: what stands before it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split(table)[1]
    (row,) = re.findall(rf"^\| {NAMES[method]} \|(.*)\|$", text.split("\n\n- **")[0], re.M)
    return [cell.strip() for cell in row.split("|")]


@pytest.mark.parametrize("method", NAMES)
def test_the_table_of_scenes(method):
    augmented, semantic, untrained = arms("scenes", method, "linear scenes-held-out")
    shifted = arms("scenes", method, "transfer scenes-shifted")
    expected = [mean_and_std(augmented), f"**{mean_and_std(semantic)}**", f"**{mean_and_std(semantic - augmented, '+')}**",
                ", ".join(f"{d:+.3f}" for d in semantic - augmented), " → ".join(map(mean_and_std, shifted[:2]))]
    assert row_of("## What semantic pairs buy on scenes", method) == expected
    said = " ".join((ROOT / f"{method}.py").read_text(encoding="utf-8").split('"""')[1].split())
    assert (f"{mean_and_std(semantic)} with semantic pairs, {mean_and_std(augmented)} with augmented pairs, "
            f"{mean_and_std(untrained)} untrained") in said


@pytest.mark.parametrize("method", NAMES)
def test_the_table_of_photographs(method):
    lines = (ROOT / "results" / "transfer" / "validation.txt").read_text().splitlines()
    number = r"([-+]?\d\.\d{3})"
    (on_validation,) = [list(map(float, found.groups())) for line in lines if
                        (found := re.match(rf"60 epochs, {method}, validation: {number} -> {number}, \S+ \[{number}, {number}\]", line))]

    def cell(augmented, semantic, low, high):  # bold: the better arm, if the interval of the difference excludes 0
        bold = lambda value, better: f"**{value:.3f}**" if better else f"{value:.3f}"
        return f"{bold(augmented, high < 0)} → {bold(semantic, low > 0)}"

    def compared(folder, measure):
        augmented, semantic, _ = arms(folder, method, measure)
        return cell(augmented.mean(), semantic.mean(), *evaluate.interval(semantic - augmented)[1:]), len(augmented)

    long, seeds = compared("transfer/epochs180", "linear cifar10-jpeg")
    expected = [compared("transfer/epochs60", "transfer clothing-160")[0], cell(*on_validation),
                compared("transfer/epochs60", "linear cifar10-jpeg")[0], f"{long} ({seeds})"]
    assert row_of("**Photographs.**", method) == expected


@pytest.mark.parametrize("folder", ["scenes", "transfer/epochs60", "transfer/epochs180"])
def test_a_comparison_is_of_the_runs_beside_it(folder, tmp_path):
    """`compare` still reads the options, results and logs of these runs, finds them matched, and tells the same of them."""
    place = ROOT / "results" / folder
    evaluate.write_comparison(evaluate.compare([run for method in NAMES for run in place.glob(f"{method}-*-seed?")]), tmp_path)
    for name in ("comparison.csv", "comparison.md"):
        told, published = (sorted((where / name).read_text(encoding="utf-8").splitlines()) for where in (tmp_path, place))
        assert told == published
