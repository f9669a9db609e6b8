"""MoCo and SimCLR on photographs at two temperatures: differences, paired by seed.

    python results/transfer/temperature.py moco > results/transfer/temperature/summary.txt
    python results/transfer/temperature.py simclr > results/transfer/cooler/summary.txt

MoCo: the runs of run.sh's `temperature` (float32), augmented pairs at 0.1, semantic pairs at 0.5; beside them the augmented pairs at
0.5 of its 60 epochs, which computed in bf16. SimCLR: `cooler`, both arms at 0.2, and `tuned`, both at 0.5, all in float32.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, ".")
import evaluate

here = Path(__file__).parent
RUNS = {
    "moco": {"augmented 0.1": "temperature/moco-augmented-temperature0.1-seed{}", "semantic 0.5": "temperature/moco-semantic-temperature0.5-seed{}",
             "augmented 0.5 (bf16)": "epochs60/moco-augmented-seed{}"},
    "simclr": {f"{arm} {t}": folder.format(arm) + "-seed{}" for arm in ("augmented", "semantic")
               for t, folder in (("0.5", "finetune/simclr-{}"), ("0.2", "cooler/simclr-{}-temperature0.2"))},
}
COMPARED = {
    "moco": [("augmented 0.1", "semantic 0.5"), ("augmented 0.5 (bf16)", "augmented 0.1")],
    "simclr": [("augmented 0.5", "augmented 0.2"), ("semantic 0.5", "semantic 0.2"), ("augmented 0.5", "semantic 0.5"), ("augmented 0.2", "semantic 0.2"),
               ("augmented 0.2", "semantic 0.5"), ("augmented 0.5", "semantic 0.2")],
}
method = sys.argv[1]
stored = lambda name, seed: here / RUNS[method][name].format(seed) / "result.json"
seeds = range(3)
for head, data in ("linear", "cifar10-jpeg"), ("knn", "cifar10-jpeg"), ("transfer", "clothing-160"):
    values = {name: [json.loads(stored(name, seed).read_text())[head][data]["accuracy"] for seed in seeds] for name in RUNS[method]}
    for before, after in COMPARED[method]:
        a, b = values[before], values[after]
        more = [y - x for x, y in zip(a, b)]
        mean, low, high = evaluate.interval(more)
        print(f"{head} {data}, {before} -> {after}: {sum(a) / len(a):.3f} -> {sum(b) / len(b):.3f}, {mean:+.3f} [{low:+.3f}, {high:+.3f}] "
              f"({', '.join(f'{d:+.3f}' for d in more)})")
