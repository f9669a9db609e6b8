"""What a GPU does in a step of SimCLR, ResNet-18 on two views of 512 images of 32 px, in bf16: milliseconds a step, then each
kind of kernel. Options are simclr.py's. From the repository's root:

    python results/speed/gpu_profile.py > results/speed/gpu_profile.txt                             # not compiled
    python results/speed/gpu_profile.py --compile > results/speed/gpu_profile_graphs.txt
"""

import sys

import torch

sys.path[:0] = [".", "tests"]
import bench
import evaluate

BATCH, STEPS, OPTIONS = 512, 20, sys.argv[1:]

evaluate.pick_device("cuda")
images = bench.photographs(BATCH * STEPS, 32)


def ms(what):
    call = bench.trainer("simclr", "resnet18", images, BATCH, "cuda", what, OPTIONS)
    return round(bench.take_turns({what: call}, 0)[what] / STEPS * 1000, 2)


print("ms/step: whole, model, batches", [ms(what) for what in ("whole", "model", "batches")], flush=True)
bench.tidy()  # what is compiled keeps the kernels that it was recorded with
torch.backends.cudnn.benchmark = True
print("cudnn.benchmark: whole, model", [ms(what) for what in ("whole", "model")], flush=True)
bench.tidy()
torch.backends.cudnn.benchmark = False
for what, shown in ("model", 24), ("batches", 14):
    call = bench.trainer("simclr", "resnet18", images, BATCH, "cuda", what, OPTIONS)
    call()
    kernels = bench.kernels_of(call)
    print(what, "GPU busy ms/step", sum(e.self_device_time_total for e in kernels) / STEPS / 1000, "kernels/step", sum(e.count for e in kernels) / STEPS)
    for e in sorted(kernels, key=lambda e: -e.self_device_time_total)[:shown]:
        print(f"  {e.self_device_time_total / STEPS / 1000:7.3f} ms  {e.count / STEPS:6.1f}x  {e.key[:110]}")
