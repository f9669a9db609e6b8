"""What the same labels give in supervised training, beside the semantic pairs of simclr.py on scenes.

    for seed in 0 1 2 3 4; do OMP_NUM_THREADS=1 python results/scenes/supervised.py --seed $seed; done
    python results/scenes/supervised.py --summary results/scenes/supervised.txt        # means of seeds 0 to 4, and beside SimCLR's

The same images, views, order, batches, epochs and schedule as `simclr.py --seed SEED`; both views of an anchor are classified into
the 256 categories by a linear layer on the backbone's features, with cross entropy. Then the same probes. --lr was chosen on seed 100,
by the probe on its held-out categories: the largest of the three tried, 0.015, 0.06 and 0.25. supervised.txt has these and seeds 0 to 4.
"""

import argparse
import copy
import json
import sys
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))
import evaluate
import pairs
import simclr

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--lr", type=float, default=0.25, help="per 256 images")
parser.add_argument("--summary", help="a file of such lines")
options = parser.parse_args()
if options.summary:
    values = {}
    for kind, seed, _, _, _, _, head, data, *rest in map(str.split, open(options.summary)):
        if kind == "seed" and seed in "01234":
            values.setdefault((head, data), []).append(float(rest[3]))
    for (head, data), v in values.items():
        print(f"mean of {len(v)}  {head:6}  {data:15}  supervised {torch.tensor(v).mean():.3f} ± {torch.tensor(v).std():.3f}")
    for head, data in ("linear", "scenes-held-out"), ("transfer", "scenes-shifted"):  # the same probe under two names
        stored = [json.loads((Path(__file__).parent / f"simclr-semantic-scenes-seed{seed}" / "result.json").read_text())[head][data] for seed in range(5)]
        more = [v - r["accuracy"] for v, r in zip(values["linear", data], stored, strict=True)]
        print("linear  {:15}  supervised - SimCLR's semantic pairs {:+.3f} [{:+.3f}, {:+.3f}]".format(data, *evaluate.interval(more)))
    sys.exit()
args = simclr.parse_args(["--seed", str(options.seed)])
source = pairs.make_pairs("augmented", pairs.load_images("scenes", seed=args.seed), args.seed)
view1, view2 = pairs.make_views(args, source.pool.image_size)
steps = len(source) // args.batch_size

torch.manual_seed(args.seed)  # the backbone has the initial weights of the runs of this seed
backbone, width = evaluate.build_backbone(args.backbone, source.pool.image_size)
untrained, classifier = copy.deepcopy(backbone), nn.Linear(width, len(source.pool.classes))
optimizer = torch.optim.SGD([*backbone.parameters(), *classifier.parameters()], momentum=0.9, weight_decay=args.weight_decay)
for epoch in range(args.epochs):
    labels = source.pool.labels[source.epoch(epoch)[0]].split(args.batch_size)
    for i, (x1, x2) in enumerate(pairs.batches(source, epoch, args.batch_size, view1, view2, "cpu")):
        optimizer.param_groups[0]["lr"] = simclr.learning_rate(epoch * steps + i, args.epochs * steps, options.lr * args.batch_size / 256, 0)
        with evaluate.autocast(torch.device("cpu")):
            logits = torch.cat([classifier(backbone(x1)), classifier(backbone(x2))]).float()
        loss = F.cross_entropy(logits, labels[i].repeat(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

for data in ("scenes", "scenes-held-out", "scenes-shifted"):
    train, test = (pairs.load_images(data, split, seed=args.seed) for split in ("train", "test"))
    for head, r in evaluate.judge(["linear", "knn"], backbone, untrained, train, test).items():
        print(f"seed {args.seed}  lr {options.lr:g}  loss {loss.item():.3f}  {head:6}  {data:15}  untrained {r['untrained']:.3f}  supervised {r['accuracy']:.3f}  "
              f"torch {torch.__version__}  {evaluate.usual_precision(torch.device('cpu'))}", flush=True)
