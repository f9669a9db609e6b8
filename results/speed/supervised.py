"""How well can a supervised network classify these files? airbench's train93 (Jordan 2024, arXiv 2404.00498), unchanged, reaches
93.00 % on the original pixels of CIFAR-10, by its author's account the mean of 50 runs. It needs airbench 0.1.8, which is for
NVIDIA GPUs: without one, its calls of CUDA do nothing here, and bf16 (or float32) takes the place of float16.

    python results/speed/supervised.py DIR [bfloat16|float32] [SEED]
"""

import os
import sys
import tempfile
import types

import airbench
import torch

sys.path[:0] = ["."]
import pairs


def run_on_cpu(precision):
    """Let airbench run without a GPU."""
    torch.nn.Module.cuda = torch.nn.Module.half = torch.Tensor.half = lambda self: self
    torch.cuda.Event = lambda **options: types.SimpleNamespace(record=lambda: None, elapsed_time=lambda other: float("nan"))
    torch.cuda.synchronize = lambda: None
    load, bf16 = torch.load, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    torch.load = lambda file, map_location: load(file, map_location="cpu")
    forward = bf16(torch.nn.Sequential.forward)
    torch.nn.Sequential.forward = lambda self, x: forward(self, x).float()  # the whole network is one Sequential


def main(data, precision="bfloat16", seed="0"):
    cpu = not torch.cuda.is_available()
    print(f"{os.path.basename(data)}, {f'a CPU, {precision}' if cpu else 'a GPU, float16'}, seed {seed}, torch {torch.__version__}")
    sets = {split: pairs.load_images(data, split) for split in ("train", "test")}
    if cpu:
        run_on_cpu(precision)
    torch.manual_seed(int(seed))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # airbench looks for cifar10/train.pt and test.pt here
        os.mkdir("cifar10")
        for split, found in sets.items():
            images = found.images.permute(0, 2, 3, 1).contiguous()  # (N, 32, 32, 3), the classes in turn
            torch.save({"images": images, "labels": found.labels, "classes": found.classes}, f"cifar10/{split}.pt")
        airbench.train93()


if __name__ == "__main__":  # processes that decode images import this file too
    pairs.run_cli(lambda: main(*sys.argv[1:]))
