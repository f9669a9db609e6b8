"""MoCo on photographs, each arm at the temperature that suits it: differences, paired by seed.

    python results/transfer/temperature.py > results/transfer/temperature/summary.txt

The runs of run.sh's `temperature` (float32): augmented pairs at 0.1, semantic pairs at 0.5. Beside them the augmented pairs at 0.5
of its 60 epochs, which computed in bf16.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, ".")
import evaluate

here = Path(__file__).parent
SEEDS = range(3)


def accuracies(pattern, head, data):
    return [json.loads((here / pattern.format(seed) / "result.json").read_text())[head][data]["accuracy"] for seed in SEEDS]


for head, data in ("linear", "cifar10-jpeg"), ("knn", "cifar10-jpeg"), ("transfer", "clothing-160"):
    augmented, semantic, table = (accuracies(pattern, head, data) for pattern in (
        "temperature/moco-augmented-temperature0.1-seed{}", "temperature/moco-semantic-temperature0.5-seed{}", "epochs60/moco-augmented-seed{}"))
    for said, a, b in (("augmented 0.1 -> semantic 0.5", augmented, semantic), ("augmented 0.5 (bf16) -> augmented 0.1", table, augmented)):
        more = [y - x for x, y in zip(a, b)]
        mean, low, high = evaluate.interval(more)
        print(f"{head} {data}, {said}: {sum(a) / len(a):.3f} -> {sum(b) / len(b):.3f}, {mean:+.3f} [{low:+.3f}, {high:+.3f}] "
              f"({', '.join(f'{d:+.3f}' for d in more)})")
