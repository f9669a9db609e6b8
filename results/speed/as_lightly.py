"""simclr.py with lightly's transform, loss and a DataLoader in place of pairs.py's batches and its own loss: does it learn more?
Options are simclr.py's. Needs lightly. From the repository's root:

    python results/speed/as_lightly.py --data cifar10-jpeg --limit 10000 --backbone convnet --epochs 20 --batch-size 256
"""

import functools
import os
import sys

from lightly.loss import NTXentLoss

sys.path[:0] = [".", "tests"]
import bench
import pairs
import simclr

loader_of = functools.cache(bench.lightly_loader)  # one for all epochs: its workers stay


def batches(source, epoch, batch_size, view1, view2, device, images=None):
    for views in loader_of(source.pool.images, batch_size, os.cpu_count() if device.type == "cuda" else 0):
        yield [x.to(device) for x in views]


if __name__ == "__main__":  # processes that decode images import this file too
    pairs.batches = batches
    simclr.nt_xent = lambda z1, z2, temperature: NTXentLoss(temperature)(z1, z2)
    sys.argv[0] = "simclr.py"
    pairs.run_cli(simclr.main)
