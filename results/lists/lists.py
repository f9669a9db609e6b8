"""Writes a world of scenes as PNG files and pair lists on it, which stay the same in all epochs; and sums up the runs on them.

    python results/lists/lists.py --seed 0 data/worlds/0/world                 # train/ and test/, and the lists below
    python results/lists/lists.py --summary results/lists                 # the runs in that folder, as a table

    every.csv    each image with one other of its category, drawn once
    tenth.csv    a random tenth of these pairs; the other images are paired with themselves, so that steps and images are equal
    wrong.csv    every.csv with two fifths of its partners replaced, once, by images of other categories
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
import evaluate
import pairs

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder", type=Path)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--summary", action="store_true")
options = parser.parse_args()

if options.summary:
    found = {}
    for file in sorted(options.folder.glob("simclr-*-seed[0-9]/result.json")):
        what, seed = file.parent.name.removeprefix("simclr-").rsplit("-seed", 1)
        result = json.loads(file.read_text())["transfer"]["scenes-held-out"]
        found.setdefault(what, {})[int(seed)] = result["accuracy"]
        found.setdefault("untrained", {})[int(seed)] = result["untrained"]
    print("linear probe on scenes-held-out: mean ± standard deviation (seeds); each seed; beside semantic pairs drawn anew: mean [95 %]; each seed")
    for what, by_seed in found.items():
        less = [by_seed[seed] - found["semantic"][seed] for seed in sorted(by_seed)]
        mean, low, high = evaluate.interval(less)
        each = lambda values, sign="": ", ".join(f"{value:{sign}.3f}" for value in values)
        print(f"{what:16}  {evaluate.mean_and_deviation(by_seed)}; {each(v for _, v in sorted(by_seed.items()))}; {mean:+.3f} [{low:+.3f}, {high:+.3f}]; {each(less, '+')}")
    print("other differences: mean [95 %]; each seed")
    for a, b in (("every", "semantic"), ("tenth", "share0.1"), ("wrong", "false0.4"), ("better", "mined"), ("better", "augmented-again"),
                 ("better-strong", "augmented-strong"), ("augmented-again", "augmented")):
        more = [found[a][seed] - found[b][seed] for seed in sorted(found[a])]
        print(f"{f'{a} - {b}':36} " + "{:+.3f} [{:+.3f}, {:+.3f}]; ".format(*evaluate.interval(more)) + each(more, "+"))
    sys.exit()

names = {}
for split in ("train", "test"):
    images = pairs.scenes(split, seed=options.seed)
    place = pairs.rank_in_class(images.labels)
    names[split] = [f"{split}/shape-{y:03d}/{i:02d}.png" for y, i in zip(images.labels.tolist(), place.tolist())]
    for name, image in zip(names[split], images.images):
        (options.folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(options.folder / name)
    if split == "train":
        labels = images.labels

n, draw = len(labels), lambda name: pairs.stream(name, options.seed)
partner = pairs.semantic_partners(labels, draw("list"))
tenth, wrong = torch.arange(n), partner.clone()
kept, replaced = torch.randperm(n, generator=draw("kept"))[: n // 10], torch.randperm(n, generator=draw("wrong"))[: 2 * n // 5]
tenth[kept] = partner[kept]
wrong[replaced] = pairs.false_partners(labels, draw("false partner"))[replaced]
for name, second in (("every", partner), ("tenth", tenth), ("wrong", wrong)):
    with open(options.folder.parent / f"{name}.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image_a", "image_b"])
        table.writerows([names["train"][i], names["train"][j]] for i, j in enumerate(second.tolist()))
