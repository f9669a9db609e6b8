"""The clothes once more, on other photographs: accuracy on the 341 validation images, with the probe trained on the other 3,068.

    python results/transfer/validation.py > results/transfer/validation.txt

The probe's strength is chosen on them, so a value is the best of nine, in both arms. The runs are those of run.sh's `commands` and,
in float32, `tuned`.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, ".")
import evaluate

here = Path(__file__).parent
METHODS = ["simclr", "moco", "byol", "simsiam"]
# folder, methods, seeds
PLANS = [("20 epochs", ".", METHODS, 5), ("60 epochs", "epochs60", METHODS, 5), ("60 epochs, float32", "finetune", ["simclr"], 5),
         ("180 epochs", "epochs180", ["simclr", "moco"], 3), ("180 epochs", "epochs180", ["byol", "simsiam"], 2),
         ("180 epochs, lr 0.03", "epochs180-slower", ["byol"], 3)]
for what, folder, methods, seeds in PLANS:
    for method in methods:
        for images in "test", "validation":
            values = []
            for arm in "augmented", "semantic":
                files = [next((here / folder).glob(f"{method}-{arm}*-seed{seed}")) / "result.json" for seed in range(seeds)]
                heads = [json.loads(file.read_text())["transfer"]["clothing-160"] for file in files]
                values.append([head["accuracy"] if images == "test" else max(head["validation"].values()) for head in heads])
            more = [y - x for x, y in zip(*values)]
            mean, low, high = evaluate.interval(more)
            print(f"{what}, {method}, {images}: {sum(values[0]) / seeds:.3f} -> {sum(values[1]) / seeds:.3f}, {mean:+.3f}"
                  + f" [{low:+.3f}, {high:+.3f}] ({', '.join(f'{d:+.3f}' for d in more)})" * (seeds > 1))
