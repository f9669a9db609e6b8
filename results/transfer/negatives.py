"""SimCLR with the images of the anchor's own category left out of its negatives: what do these cost semantic pairs?

    python results/transfer/negatives.py --pairs semantic ...       # the options of simclr.py; commands in run.sh

In simclr.py labels choose the partner and do nothing else. With ten classes a tenth of an anchor's negatives are then of its
own class (the log's same_class_rate): the loss pulls it towards one image of that and pushes it away from the others. Here
these have no place in the softmax. All else is simclr.py's, the random draws included. With --pairs augmented the labels are
used for the negatives only.
"""

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


def main(method="simclr-masked", loss=nt_xent):
    """Runs simclr.py with a loss of this file or of supcon.py, which are told the labels of the batch, as a method of its own."""
    batches, run = pairs.batches, evaluate.Run

    def labelled_batches(source, epoch, batch_size, view1, view2, device, images):
        labels = source.pool.labels[source.epoch(epoch)[0]].to(device).split(batch_size)
        for here, views in zip(labels, batches(source, epoch, batch_size, view1, view2, device, images)):
            simclr.nt_xent = lambda z1, z2, temperature: loss(z1, z2, temperature, here)
            yield views

    pairs.batches = labelled_batches
    evaluate.Run = lambda _, *rest: run(method, *rest)
    simclr.main()


if __name__ == "__main__":
    pairs.run_cli(main)
