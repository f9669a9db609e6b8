"""Prints the study's table from the result.json files beside it: mean ± standard deviation over seeds, raw values."""

import json
import statistics
from pathlib import Path

here = Path(__file__).parent
METHODS, SEEDS = ["simclr", "moco", "byol", "simsiam"], [0, 1, 2]


def cell(values):
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f} ({', '.join(f'{v:.3f}' for v in values)})"


for head, data in (("linear", "scenes-held-out"), ("knn", "scenes-held-out"), ("linear", "scenes"), ("knn", "scenes")):
    results = {(m, p, s): json.loads((here / f"{m}-{p}-scenes-seed{s}" / "result.json").read_text())[head][data]
               for m in METHODS for p in ("augmented", "semantic") for s in SEEDS}
    one = results["simclr", "semantic", 0]
    print(f"\n### {head}, {data}: {one['classes']} categories, chance {one['chance']:.3f}, {one['n_train']} training and {one['n_test']} test images\n")
    print("| method | untrained | augmented | semantic | semantic - augmented |\n|---|---|---|---|---|")
    for m in METHODS:
        a, s = ([results[m, p, seed]["accuracy"] for seed in SEEDS] for p in ("augmented", "semantic"))
        u = [results[m, "semantic", seed]["untrained"] for seed in SEEDS]
        print(f"| {m} | {cell(u)} | {cell(a)} | {cell(s)} | {cell([y - x for x, y in zip(a, s)])} |")
