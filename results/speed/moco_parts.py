"""MoCo's step with BatchNorm over parts of a whole batch (moco.SplitBatchNorm) beside one pass through the network for each
part, by turns. From the repository's root:

    python results/speed/moco_parts.py > results/speed/moco_parts.txt
"""

import sys

import torch
from torchvision.models import ResNet

sys.path[:0] = [".", "tests"]
import bench
import moco

BATCH, PARTS = 64, 8


class PassForEachPart(ResNet):
    def forward(self, x):
        network = super().forward
        return torch.cat([network(part) for part in x.chunk(PARTS)])


def convert(network, parts):  # in place of SplitBatchNorm.convert: BatchNorm stays as it is
    if isinstance(network, ResNet):
        network.__class__ = PassForEachPart


images = bench.photographs(2 * BATCH, 32)
calls = {"the batch whole": bench.trainer("moco", "resnet18", images, BATCH, "cpu")}
moco.SplitBatchNorm.convert = convert
calls["a pass for each part"] = bench.trainer("moco", "resnet18", images, BATCH, "cpu")
times = bench.take_turns(calls, 150)
print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, ResNet-18, 32 px, batches of {BATCH}, {PARTS} parts")
for name, seconds in times.items():
    print(f"{name}: {seconds / 2:.3f} s a step")
print(f"{times['a pass for each part'] / times['the batch whole']:.2f} times as fast")
