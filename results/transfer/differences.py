"""Photographs at other temperatures and learning rates, with stronger colour jitter, without the class's own negatives, with few or false
pairs, with SupCon: differences by seed.

    python results/transfer/differences.py curation > results/transfer/curation/summary.txt
    python results/transfer/differences.py negatives > results/transfer/negatives/summary.txt
    python results/transfer/differences.py temperature > results/transfer/temperature/summary.txt
    python results/transfer/differences.py cooler > results/transfer/cooler/summary.txt
    python results/transfer/differences.py jitter > results/transfer/jitter/summary.txt
    python results/transfer/differences.py sharper > results/transfer/sharper/summary.txt
    python results/transfer/differences.py epochs180-baseline > results/transfer/epochs180-baseline/summary.txt
    python results/transfer/differences.py epochs180-slower > results/transfer/epochs180-slower/summary.txt
    python results/transfer/differences.py supcon > results/transfer/supcon/summary.txt

The runs are those of run.sh's functions of these names; beside them `tuned` (in finetune), SimCLR's 60 epochs in float32, and those of
`commands 60` (in epochs60) and `longer` (in epochs180), which computed in bf16, as did `jitter`, `sharper`, `baseline` (in
epochs180-baseline), `slower` (in epochs180-slower) and `supcon`. Masked: without negatives of the class, see negatives.py.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, ".")
import evaluate

here = Path(__file__).parent
# folder: seeds; runs; which are compared
PLANS = {
    "curation": (3, {"augmented": "finetune/simclr-augmented-seed{}", "two fifths false": "curation/simclr-false0.4-seed{}",
                     "a quarter semantic": "curation/simclr-share0.25-seed{}", "semantic": "finetune/simclr-semantic-seed{}"},
                 [("augmented", "two fifths false"), ("augmented", "a quarter semantic"), ("two fifths false", "a quarter semantic"),
                  ("augmented", "semantic")]),
    "negatives": (3, {"augmented": "finetune/simclr-augmented-seed{}", "augmented, masked": "negatives/simclr-augmented-seed{}",
                      "semantic": "finetune/simclr-semantic-seed{}", "semantic, masked": "negatives/simclr-semantic-seed{}"},
                  [("augmented", "augmented, masked"), ("semantic", "semantic, masked"), ("augmented", "semantic"),
                   ("augmented", "semantic, masked")]),
    "temperature": (3, {"augmented 0.1": "temperature/moco-augmented-temperature0.1-seed{}",
                        "semantic 0.5": "temperature/moco-semantic-temperature0.5-seed{}",
                        "augmented 0.5 (bf16)": "epochs60/moco-augmented-seed{}"},
                    [("augmented 0.1", "semantic 0.5"), ("augmented 0.5 (bf16)", "augmented 0.1")]),
    "cooler": (3, {"augmented 0.5": "finetune/simclr-augmented-seed{}", "augmented 0.2": "cooler/simclr-augmented-temperature0.2-seed{}",
                   "semantic 0.5": "finetune/simclr-semantic-seed{}", "semantic 0.2": "cooler/simclr-semantic-temperature0.2-seed{}"},
               [("augmented 0.5", "augmented 0.2"), ("semantic 0.5", "semantic 0.2"), ("augmented 0.5", "semantic 0.5"),
                ("augmented 0.2", "semantic 0.2"), ("augmented 0.2", "semantic 0.5"), ("augmented 0.5", "semantic 0.2")]),
    "jitter": (5, {"augmented": "epochs60/simclr-augmented-seed{}", "augmented, stronger jitter": "jitter/simclr-augmented-jitter0.8-seed{}",
                   "semantic": "epochs60/simclr-semantic-seed{}", "semantic, stronger jitter": "jitter/simclr-semantic-jitter0.8-seed{}"},
               [("augmented", "augmented, stronger jitter"), ("semantic", "semantic, stronger jitter"), ("augmented", "semantic"),
                ("augmented, stronger jitter", "semantic, stronger jitter"), ("augmented, stronger jitter", "semantic")]),
    "sharper": (3, {"semantic 0.5": "epochs60/moco-semantic-seed{}", "semantic 0.1": "sharper/moco-semantic-temperature0.1-seed{}",
                    "augmented 0.1 (float32)": "temperature/moco-augmented-temperature0.1-seed{}"},
                [("semantic 0.5", "semantic 0.1"), ("augmented 0.1 (float32)", "semantic 0.1")]),
    "epochs180-baseline": (3, {"augmented 0.5": "epochs180/moco-augmented-seed{}",
                               "augmented 0.1": "epochs180-baseline/moco-augmented-temperature0.1-seed{}",
                               "semantic 0.5": "epochs180/moco-semantic-seed{}"},
                           [("augmented 0.5", "augmented 0.1"), ("augmented 0.1", "semantic 0.5")]),
    "epochs180-slower": (3, {"augmented 0.12": "epochs180/byol-augmented-seed{}", "augmented 0.03": "epochs180-slower/byol-augmented-lr0.03-seed{}",
                             "semantic 0.12": "epochs180/byol-semantic-seed{}", "semantic 0.03": "epochs180-slower/byol-semantic-lr0.03-seed{}"},
                         [("augmented 0.12", "augmented 0.03"), ("augmented 0.12", "semantic 0.12"), ("augmented 0.12", "semantic 0.03"),
                          ("augmented 0.03", "semantic 0.03")]),
    "supcon": (5, {"augmented": "epochs60/simclr-augmented-seed{}", "semantic": "epochs60/simclr-semantic-seed{}",
                   "augmented, SupCon": "supcon/supcon-augmented-seed{}", "semantic, SupCon": "supcon/supcon-semantic-seed{}"},
               [("augmented", "augmented, SupCon"), ("semantic", "augmented, SupCon"), ("semantic", "semantic, SupCon"),
                ("augmented, SupCon", "semantic, SupCon")]),
}
seeds, runs, compared = PLANS[sys.argv[1]]
result = lambda run, head, data: json.loads((here / run / "result.json").read_text())[head][data]
accuracy = lambda found, images: found["accuracy"] if images == "test" else max(found["validation"].values())  # the best of nine strengths
for head, data, images in (("linear", "cifar10-jpeg", "test"), ("knn", "cifar10-jpeg", "test"),
                           ("transfer", "clothing-160", "test"), ("transfer", "clothing-160", "validation")):
    values = {name: {seed: accuracy(result(run.format(seed), head, data), images) for seed in range(seeds) if (here / run.format(seed)).exists()}
              for name, run in runs.items()}
    what = f"{head} {data}" + f", {images} images" * (images != "test")
    for before, after in compared:
        both = sorted(values[before].keys() & values[after].keys())  # the seeds of both
        a, b = ([values[name][seed] for seed in both] for name in (before, after))
        more = [y - x for x, y in zip(a, b)]
        mean, low, high = evaluate.interval(more)
        print(f"{what}, {before} -> {after}: {sum(a) / len(a):.3f} -> {sum(b) / len(b):.3f}, {mean:+.3f} [{low:+.3f}, {high:+.3f}] "
              f"({', '.join(f'{d:+.3f}' for d in more)})")
