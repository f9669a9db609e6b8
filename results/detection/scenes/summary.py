"""What comparison.md does not say: AP beside a random start, and whether the pretraining runs repeat those of results/scenes.

    python results/detection/scenes/summary.py > results/detection/scenes/summary.txt
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
import evaluate

METHODS, SEEDS = ("simclr", "moco", "byol", "simsiam"), range(5)
stored = lambda folder, method, arm, seed: evaluate.read_json(folder / f"{method}-{arm}-scenes-seed{seed}" / "result.json")
ap = lambda method, arm, seed, init="run": stored(HERE, method, arm, seed)["detect"][f"scenes, c4, init {init}, seed 0"]["ap"]
print("AP - AP of a backbone that starts at random, mean and 95 % interval over five seeds")
for method in METHODS:
    for arm in ("augmented", "semantic"):
        differences = [ap(method, arm, seed) - ap("simclr", "augmented", seed, "random") for seed in SEEDS]
        print(f"{method:8}{arm:10}" + "{:+.3f} [{:+.3f}, {:+.3f}]".format(*evaluate.interval(differences)))

equal = [stored(HERE, method, arm, seed)[head][data]["accuracy"] == stored(HERE.parents[1] / "scenes", method, arm, seed)[head][data]["accuracy"]
         for method in METHODS for arm in ("augmented", "semantic") for seed in SEEDS for head in ("linear", "knn") for data in ("scenes", "scenes-held-out")]
print(f"linear probe and kNN accuracies equal to those of results/scenes, to the last digit: {sum(equal)} of {len(equal)}")
