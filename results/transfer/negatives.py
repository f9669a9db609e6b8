"""SimCLR with the images of the anchor's own category left out of its negatives: what do these cost semantic pairs?

    python results/transfer/negatives.py --pairs semantic ...       # the options of simclr.py; commands in run.sh
    python results/transfer/negatives.py summary                    # of the runs in this folder, beside simclr.py's

In simclr.py labels choose the partner and do nothing else. With ten classes a tenth of an anchor's negatives are then of its
own class (the log's same_class_rate): the loss pulls it towards one image of that and pushes it away from the others. Here
these have no place in the softmax. All else is simclr.py's, the random draws included. With --pairs augmented the labels are
used for the negatives only.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))
import evaluate
import pairs
import simclr


def nt_xent(z1, z2, temperature, labels):
    """simclr.nt_xent with negatives of other classes only; labels: int64 (N,), of the anchors and of their partners.

    If no two labels are equal it is simclr.nt_xent; if all are, it is 0, as there are no negatives.
    """
    n = len(z1)
    z, labels = F.normalize(torch.cat([z1, z2]), dim=1), labels.repeat(2)  # (2N, d), (2N,)
    positive = torch.arange(2 * n, device=z.device).roll(n)  # i <-> i + N
    masked = (labels[:, None] == labels).scatter(1, positive[:, None], False)  # (2N, 2N): the anchor and its class, not the positive
    return F.cross_entropy((z @ z.T / temperature).masked_fill(masked, float("-inf")), positive)


def main():
    """Runs simclr.py with this loss and with batches that tell it their labels."""
    batches, run = pairs.batches, evaluate.Run

    def labelled_batches(source, epoch, batch_size, view1, view2, device, images):
        labels = source.pool.labels[source.epoch(epoch)[0]].to(device).split(batch_size)
        for here, views in zip(labels, batches(source, epoch, batch_size, view1, view2, device, images)):
            simclr.nt_xent = lambda z1, z2, temperature: nt_xent(z1, z2, temperature, here)
            yield views

    pairs.batches = labelled_batches
    evaluate.Run = lambda method, *rest: run("simclr-masked", *rest)  # a method of its own for `compare`
    simclr.main()


def summary():
    """Accuracy without the class's own negatives minus accuracy with them, paired by seed."""
    here = Path(__file__).parent
    for head, data in ("linear", "cifar10-jpeg"), ("transfer", "clothing-160"):
        for arm in "augmented", "semantic":
            runs = sorted((here / "negatives").glob(f"simclr-{arm}-seed*"))
            with_them, without = ([json.loads((here / kind / run.name / "result.json").read_text())[head][data]["accuracy"] for run in runs] for kind in ("finetune", "negatives"))
            more = [b - a for a, b in zip(with_them, without)]
            mean, low, high = evaluate.interval(more)
            print(f"{head} {data}, {arm} pairs: {sum(with_them) / len(runs):.3f} -> {sum(without) / len(runs):.3f} without negatives of the anchor's class, "
                  f"{mean:+.3f} [{low:+.3f}, {high:+.3f}] ({', '.join(f'{d:+.3f}' for d in more)})")


if __name__ == "__main__":
    summary() if sys.argv[1:] == ["summary"] else pairs.run_cli(main)
