"""simclr.py with lightly's transform, loss and a DataLoader in place of pairs.py's batches and its own loss: does it learn more?
Options are simclr.py's. Needs lightly. From the repository's root:

    PYTHONPATH=. python results/speed/as_lightly.py --data cifar10-jpeg --limit 10000 --backbone convnet --epochs 20 --batch-size 256
"""

import os
import sys

import torch
from lightly.loss import NTXentLoss
from lightly.transforms import SimCLRTransform
from PIL import Image

import pairs
import simclr


kept = []  # one DataLoader for all epochs: its workers stay


def loader(source, batch_size, workers):
    transform = SimCLRTransform(input_size=source.pool.image_size, cj_strength=0.5, gaussian_blur=0.0)  # as in lightly's CIFAR-10 benchmark
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in source.pool.images]
    collate = lambda rows: [torch.stack(views) for views in zip(*(transform(pictures[i]) for i in rows))]
    return torch.utils.data.DataLoader(range(len(pictures)), batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate)


def batches(source, epoch, batch_size, view1, view2, device, images=None):
    if not kept:
        kept.append(loader(source, batch_size, os.cpu_count() if device.type == "cuda" else 0))
    for views in kept[0]:
        yield [x.to(device) for x in views]


pairs.batches = batches
simclr.nt_xent = lambda z1, z2, temperature: NTXentLoss(temperature)(z1, z2)
print(f"with lightly's {SimCLRTransform.__name__} and {NTXentLoss.__name__}", flush=True)
sys.argv[0] = "simclr.py"
pairs.run_cli(simclr.main)
