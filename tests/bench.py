"""Speed, as ratios measured in one run. A script, not a test:

    python tests/bench.py [--device cuda] [--seconds 10] [--only augment step] [--out FILE.json]

  augment   views/s of pairs.batches beside torchvision's transforms, image by image, and lightly's and kornia's, if there
  step      a method's whole training step beside its bare model step on a fixed batch: the share that is not the model;
            and the share that making the batches takes by itself, which is less noisy where steps take seconds
  methods   pairs/s and memory of each method; FLOP/s as a share of a large matrix product's of the same precision
  precision training steps in float32 beside bf16
  compile   what --compile costs at the first step, and what it saves at the others
  epoch     an epoch of simclr.py beside the same model fed by lightly's transform and a DataLoader, if lightly is there
  probe     the L-BFGS probe beside scikit-learn's, if there
  growth    time per pair at 1, 4, 16 times the images, and at 32, 64, 96 px
  recipes   ResNet-50 at 224 px with the papers' heads: FLOPs of a pair in units of a supervised image's, memory of a pair

Two things that are compared take turns, so that another load on the machine hits both; the median of the turns counts.
"""

import argparse
import functools
import gc
import importlib
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
import types
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
import torchvision.transforms.v2 as T
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
import evaluate
import pairs

METHODS = ["simclr", "moco", "byol", "simsiam"]
CPU = torch.cpu.get_capabilities()


def take_turns(calls, seconds, prepare=lambda: None):
    """{name: median seconds of a call}: the calls in turn, after one round that does not count, for `seconds`, each
    after prepare(), which does not count."""
    times, start = {name: [] for name in calls}, None
    while start is None or time.perf_counter() - start < seconds or len(next(iter(times.values()))) < 3:
        for name, call in calls.items():
            prepare()
            synchronize()
            before = time.perf_counter()
            call()
            synchronize()
            if start is not None:
                times[name].append(time.perf_counter() - before)
        start = start or time.perf_counter()
    return {name: statistics.median(t) for name, t in times.items()}


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def importable(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def photographs(n, size):
    """n images with structure at every scale, uint8 (n, 3, size, size): noise, smoothed more and less."""
    generator = torch.Generator().manual_seed(0)
    x = sum(F.interpolate(torch.rand(n, 3, k, k, generator=generator), (size, size), mode="bilinear") / 3 for k in (2, 8, 16))
    return (x * 255).to(torch.uint8)


def source_of(images):
    """Pairs of images that are all of one class."""
    return pairs.Pairs(pairs.ImageSet("", images, torch.zeros(len(images), dtype=torch.long), ["any"]), "semantic", 0)


def bench_augment(device, seconds):
    """Views/s at 32 px without blur, SimCLR's recipe for CIFAR, and at 224 px with it; `ms` is the time of a batch of `views`,
    two of each image, as pairs.batches makes them: on a GPU several batches of 32 px together."""
    rows = {}
    many = device.startswith("cuda")  # a few views would take it as long
    for size, n, blur in ((32, 1024 if many else 512, 0.0), (224, 256 if many else 32, 0.5)):
        view = pairs.Augmentation(crop=(0.08, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), p_blur=blur)
        images = photographs(n, size).to(device)
        source = source_of(images.repeat(10 if many else 1, 1, 1, 1))
        steps = 2 * len(source) // n
        one = [T.RandomResizedCrop(size, (0.08, 1.0), antialias=True), T.RandomHorizontalFlip(), T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), T.RandomGrayscale(0.2)]
        one += [T.RandomApply([T.GaussianBlur(size // 10 // 2 * 2 + 1, (0.1, 2.0))], 0.5)] if blur else []
        one = T.Compose([*one, T.ToDtype(torch.float32, scale=True), T.Normalize(pairs.IMAGENET_MEAN, pairs.IMAGENET_STD)])
        cpu = images[:32].cpu()
        calls = {"ours": lambda: [len(x1) for x1, _ in pairs.batches(source, 0, n // 2, view, view, device)], "torchvision": lambda: [one(x) for x in cpu]}
        views = {"ours": steps * n, "torchvision": 32}
        if importable("lightly.transforms"):
            from lightly.transforms import SimCLRTransform

            two = SimCLRTransform(input_size=size, cj_strength=0.5, gaussian_blur=blur)  # makes two views of an image
            pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in cpu[:16]]
            calls["lightly"], views["lightly"] = lambda: [two(p) for p in pictures], 32
        if importable("kornia"):
            import kornia.augmentation as K

            parts = [K.RandomResizedCrop((size, size), (0.08, 1.0)), K.RandomHorizontalFlip(), K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), K.RandomGrayscale(p=0.2)]
            batch = K.AugmentationSequential(*parts, *([K.RandomGaussianBlur((23, 23), (0.1, 2.0), p=0.5)] if blur else []))
            calls["kornia"], views["kornia"] = lambda: batch(images.float() / 255), n
        t = take_turns(calls, seconds)
        rows[f"{size} px"] = {name: views[name] / t[name] for name in t} | {"views": n, "ms": 1000 * t["ours"] / steps}
    return rows


def build(method, backbone_name, size, device, options=()):
    """(module, model, optimizer, arguments) of a method as its script builds them, with its recipe for photographs."""
    module = importlib.import_module(method)
    args = module.parse_args(["--data", ".", "--device", device, "--backbone", backbone_name, *options])
    torch.manual_seed(0)
    backbone, width = evaluate.build_backbone(backbone_name, size)
    a = args
    model = {"simclr": lambda: module.SimCLR(backbone, width, width, 128), "moco": lambda: module.MoCo(backbone, width, width, 128, a.queue_size, a.bn_splits),
             "byol": lambda: module.BYOL(backbone, width, a.hidden_dim, a.projection_dim),
             "simsiam": lambda: module.SimSiam(backbone, width, a.embedding_dim, a.bottleneck_dim, a.projector_layers)}[method]()
    model = model.to(device, memory_format=torch.channels_last)
    groups = [{"params": [p for n, p in model.named_parameters() if p.requires_grad and n.startswith("predictor") == last]} for last in (False, True)]
    groups = groups if method == "simsiam" else [{"params": [p for p in model.parameters() if p.requires_grad]}]
    return module, model, torch.optim.SGD(groups, args.lr, momentum=0.9, weight_decay=args.weight_decay, fused=device.startswith("cuda")), args


def steps_timed(device):
    """Steps of an epoch that is timed: on a GPU more, because they are short and the host waits while an epoch begins."""
    return 40 if device.startswith("cuda") else 2


def trainer(method, backbone_name, images, batch_size, device, what="whole", options=(), **how):
    """A call that trains one epoch over the images with the method's own loop. what: "whole"; "model" feeds it one batch
    again and again, already augmented: what is left is the model; "batches" makes the batches and trains nothing. how: for
    pairs.batches."""
    parts = ("--bn-splits", str(max(1, min(8, batch_size // 8)))) if method == "moco" else ()
    module, model, optimizer, args = build(method, backbone_name, images.shape[-1], device, (*parts, *options))
    args.batch_size, args.epochs = batch_size, 1
    images = pairs.to_device(images, device)
    source = source_of(images)
    view1, view2 = pairs.make_views(args, images.shape[-1])
    plain, batches = pairs.batches, functools.partial(pairs.batches, **how)
    one = [x.clone() for x in next(batches(source, 0, batch_size, view1, view2, device))]  # not the others that were made with it
    run = types.SimpleNamespace(epoch=0, first=True, printed=math.inf, printed_step=0, total=2**62, epochs=1, save=lambda *_: None)
    run.log = functools.partial(evaluate.Run.log, run)  # the log itself, but none of its lines

    def call():
        if what == "batches":
            for _ in batches(source, 0, batch_size, view1, view2, device):
                pass
            return
        run.step, run.losses = 0, 0.0
        pairs.batches = (lambda *_: (one for _ in range(len(images) // batch_size))) if what == "model" else batches
        module.train(model, optimizer, source, view1, view2, run, args)
        pairs.batches = plain

    return call


def host_waits_per_step(method, backbone_name, batch_size, device, options=()):
    """How often the host waits for the GPU in a step: the difference of epochs of 4 and of 2 steps, by two (an epoch waits
    while it begins). Batches are made one by one: a wait for several together would be in both epochs."""
    waits = []
    for steps in (2, 4):
        call = trainer(method, backbone_name, photographs(batch_size * steps, 32), batch_size, device, options=options, at_once=1)
        call()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchronizing CUDA operation" in str(w.message) for w in said))
    assert waits[0] > 0, "no wait is seen where an epoch begins, so none would be seen in a step"
    return (waits[1] - waits[0]) / 2


def kernels_of(call):
    """The kinds of kernels and copies on a GPU in a call, as torch.profiler counts them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        synchronize()
    return [e for e in profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation]


def tidy():
    """Gives back what earlier measurements left: compiled networks refer to themselves, so only a collection ends them."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def flops_of(call):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def kept_bytes(method, backbone_name, size, device, options=()):
    """Bytes that a pair leaves in memory until the backward pass, of networks that are not compiled: the difference of steps of 4
    and of 2 pairs, by two."""
    total = []
    for n in (2, 4):
        kept, call = {}, trainer(method, backbone_name, photographs(n, size), n, device, "model", options)

        def keep(x):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            call()
        total.append(sum(kept.values()))
    return (total[1] - total[0]) / 2


def bench_step(methods, device, seconds, batch_size, options):
    steps, rows = steps_timed(device), {}
    images = photographs(batch_size * steps, 32)
    for method in methods:
        calls = {name: trainer(method, "resnet18", images, batch_size, device, name, options) for name in ("whole", "model", "batches")}
        t = take_turns(calls, seconds)
        rows[method] = {f"{name}_s": v / steps for name, v in t.items()} | {"not_the_model": 1 - t["model"] / t["whole"], "making_batches": t["batches"] / t["whole"]}
        if device.startswith("cuda"):
            kernels = kernels_of(calls["whole"])  # far shorter together than the step: the GPU waits
            rows[method] |= {"gpu_busy_s": sum(e.self_device_time_total for e in kernels) / 1e6 / steps, "kernels_and_copies": sum(e.count for e in kernels) / steps}
    return rows


def bench_methods(methods, device, seconds, batch_size, options):
    rows, images, on_gpu = {}, photographs(batch_size * steps_timed(device), 32), device.startswith("cuda")
    kind, side = getattr(torch, evaluate.usual_precision(torch.device(device))), 8192 if on_gpu else 2048
    for method in methods:
        flops = flops_of(trainer(method, "resnet18", images[:batch_size], batch_size, device)) * steps_timed(device)  # of networks that are not compiled, where each is seen
        if on_gpu:
            call = a = None  # those of the method before: freed later, they would be missing in the peak
            tidy()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        call, peak = trainer(method, "resnet18", images, batch_size, device, options=options), {}
        call()
        if on_gpu:  # of training alone: images, networks, optimiser and all that a step holds
            peak = {"peak_memory_gb": (torch.cuda.max_memory_allocated() - before) / 1e9, "host_waits_per_step": host_waits_per_step(method, "resnet18", batch_size, device, options)}
        a = torch.randn(side, side, device=device, dtype=kind)
        t = take_turns({"whole": call, "matrix": lambda: a @ a}, seconds)
        rate = 2 * side**3 / t["matrix"]
        rows[method] = {"pairs_per_s": len(images) / t["whole"], "gflop_per_s": flops / t["whole"] / 1e9, "share_of_matrix_rate": flops / t["whole"] / rate,
                        "kept_mb_per_pair": kept_bytes(method, "resnet18", 32, device) / 1e6, **peak}
    return rows


def bench_precision(device, seconds, batch_size):
    """Both trained by simclr.py's own loop; `chosen` is what it takes here without --precision."""
    if device == "cpu" and not (CPU.get("avx512_bf16") or CPU.get("amx_bf16")):
        return {"bfloat16": "no instructions for it, so not timed: it would be emulated"}
    steps, rows = steps_timed(device), {}
    for backbone in ("convnet", "resnet18"):
        images = photographs(batch_size * steps, 32)
        t = take_turns({kind: trainer("simclr", backbone, images, batch_size, device, options=("--precision", kind)) for kind in ("float32", "bfloat16")}, seconds)
        rows[f"simclr, {backbone}"] = {f"{kind}_ms": 1000 * v / steps for kind, v in t.items()} | {"ratio": t["float32"] / t["bfloat16"], "chosen": evaluate.usual_precision(torch.device(device))}
    return rows


def bench_compile(device, seconds, batch_size):
    """All trained by the method's own loop; the first compiled call also compiles, with nothing kept from earlier runs. On a
    GPU ResNet-18 alone, and also with CUDA graphs."""
    cache, rows, on_gpu = tempfile.TemporaryDirectory(ignore_cleanup_errors=True), {}, device.startswith("cuda")  # removed at the end of this function
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache.name
    steps = 2 * steps_timed(device)
    for backbone in ("resnet18",) if on_gpu else ("convnet", "resnet18"):
        images = photographs(batch_size * steps, 32)
        make = lambda *options: trainer("simclr", backbone, images, batch_size, device, options=options)
        calls, first, failed = {"eager": make(), "compiled": make("--compile", "default")}, {}, {}
        for name in ("eager", "eager", "compiled"):  # what the process itself needs at its first steps is not the compiler's
            before = time.perf_counter()
            calls[name]()
            synchronize()
            first[name] = time.perf_counter() - before
        if on_gpu:
            graphs = make("--compile")
            try:  # they may not suit the loop; the others should be timed all the same
                graphs(), graphs()
                calls["compiled_cuda_graphs"] = graphs
            except RuntimeError as error:
                failed["compiled_cuda_graphs"] = str(error).splitlines()[0]
        t = take_turns(calls, seconds)
        rows[f"simclr, {backbone}"] = {"start_s": first["compiled"] - first["eager"], **{f"{name}_ms": 1000 * v / steps for name, v in t.items()}, "ratio": t["eager"] / t["compiled"], **failed}
    return rows


def lightly_loader(images, batch_size, workers):
    """A DataLoader of batches (x1, x2) of uint8 images (N, 3, S, S) by lightly's SimCLRTransform, as in its CIFAR-10 benchmark."""
    from lightly.transforms import SimCLRTransform

    transform, pictures = SimCLRTransform(input_size=images.shape[-1], cj_strength=0.5, gaussian_blur=0.0), [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images]
    return torch.utils.data.DataLoader(range(len(pictures)), batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0,
                                       collate_fn=lambda rows: [torch.stack(views) for views in zip(*(transform(pictures[i]) for i in rows))])


def bench_epoch(device, batch_size, workers, options):
    """Pairs/s; lightly's plain PyTorch example of SimCLR, with this model, batch and precision."""
    if not importable("lightly.transforms"):
        return {"lightly": "not importable"}
    from lightly.loss import NTXentLoss

    rows = {}
    for backbone, steps in (("resnet18", 80),) if device.startswith("cuda") else (("resnet18", 4), ("convnet", 16)):
        images = photographs(batch_size * steps, 32)
        ours = trainer("simclr", backbone, images, batch_size, device, options=options)
        _, model, optimizer, args = build("simclr", backbone, 32, device)
        criterion, loader = NTXentLoss(args.temperature), lightly_loader(images, batch_size, workers)

        def theirs():
            for x1, x2 in loader:
                with evaluate.autocast(torch.device(device)):
                    z1, z2 = model(x1.to(device)), model(x2.to(device))
                optimizer.zero_grad()
                criterion(z1.float(), z2.float()).backward()
                optimizer.step()

        t = take_turns({"ours": ours, "lightly": theirs}, 1)
        rows[f"simclr, {backbone}"] = {f"{name}_pairs_per_s": len(images) / v for name, v in t.items()} | {"ratio": t["lightly"] / t["ours"], "workers": workers}
    return rows


def bench_probe(seconds):
    linear_model = importable("sklearn.linear_model")
    if not linear_model:
        return {"scikit-learn": "not importable"}
    torch.manual_seed(0)
    centres, y = torch.randn(10, 256), torch.arange(4000) % 10
    x, rows = centres[y] * 0.15 + torch.randn(4000, 256), {}
    for l2 in (1e-1, 1e-3):
        t = take_turns({"ours": lambda: evaluate.logistic_regression(x, y, 10, l2),
                        "scikit-learn": lambda: linear_model.LogisticRegression(C=1 / (4000 * l2), max_iter=1000).fit(x.numpy(), y.numpy())}, seconds)
        rows[f"l2 {l2:g}"] = t | {"ratio": t["scikit-learn"] / t["ours"]}
    return rows


def bench_growth(device, seconds):
    """Microseconds per pair of simclr.py with the small convnet: should not grow with the images, and as size^2 at most."""
    rows = {}
    for name, n, size in (("1 x 512", 512, 32), ("4 x", 2048, 32), ("16 x", 8192, 32), ("64 px", 512, 64), ("96 px", 512, 96)):
        t = take_turns({"t": trainer("simclr", "convnet", photographs(n, size), 128, device)}, seconds / 5)["t"]
        rows[name] = {"us_per_pair": 1e6 * t / n, "images": n, "px": size}
    return rows


RECIPES = {"simclr": (), "moco": ("--bn-splits", "1"), "byol": ("--hidden-dim", "4096", "--blur", "1", "0.1"), "simsiam": ("--projector-layers", "3")}


def bench_recipes(device):
    supervised = torchvision.models.resnet50()
    image = flops_of(lambda: supervised(torch.randn(2, 3, 224, 224)).sum().backward()) / 2
    rows = {}
    for method, options in RECIPES.items():
        call = trainer(method, "resnet50", photographs(2, 224), 2, device, "model", options)
        weights = build(method, "resnet50", 224, device, options)[1].parameters()
        rows[method] = {"supervised_images_per_pair": flops_of(call) / 2 / image, "kept_mb_per_pair": kept_bytes(method, "resnet50", 224, device, options) / 1e6,
                        "weights_gradients_momentum_mb": sum(4 * p.numel() * (3 if p.requires_grad else 1) for p in weights) / 1e6}
    return rows


def version_of(package):
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement, three rounds at least [10]")
    parser.add_argument("--quick", action="store_true", help="a second each, in batches of 16, to try it")
    parser.add_argument("--compile", nargs="?", const="reduce-overhead", choices=["default", "reduce-overhead", "max-autotune"], help="in this mode of torch.compile the networks of `step`, `methods` and `epoch` (not lightly's), as a run on a GPU has them")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="of `step` and `methods` [all]")
    parser.add_argument("--only", nargs="+", help="augment, step, methods, precision, compile, epoch, probe, growth, recipes [all]")
    parser.add_argument("--workers", type=int, default=2, help="of lightly's DataLoader [2]")
    parser.add_argument("--out", default="runs/bench.json", help="[runs/bench.json]")
    args = parser.parse_args()
    evaluate.pick_device(args.device)  # as every program does: float32 is not TF32
    seconds, batch_size = (1, 16) if args.quick else (args.seconds, 64)
    batch_size = 512 if args.device.startswith("cuda") else batch_size
    torch.empty(31 * 2**18)  # 31 MB, freed: glibc then keeps what is freed, for all that is measured, as it does in a training run
    torch._dynamo.config.recompile_limit = 100  # of compiled networks in one process; beyond, torch would leave further ones as they are
    options = ("--compile", args.compile) if args.compile else ()
    parts = {"augment": lambda: bench_augment(args.device, seconds), "step": lambda: bench_step(args.methods, args.device, seconds, batch_size, options),
             "methods": lambda: bench_methods(args.methods, args.device, seconds, batch_size, options),
             "precision": lambda: bench_precision(args.device, seconds, batch_size), "compile": lambda: bench_compile(args.device, seconds, batch_size), "epoch": lambda: bench_epoch(args.device, batch_size, args.workers, options),
             "probe": lambda: bench_probe(seconds), "growth": lambda: bench_growth(args.device, seconds), "recipes": lambda: bench_recipes(args.device)}
    result = {"machine": {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine(), "cpu": CPU.get("cpu_name"),
                          "precision": evaluate.usual_precision(torch.device(args.device)), "python": platform.python_version(),
                          "gpu": torch.cuda.get_device_name() if args.device.startswith("cuda") else None, "batch_size": batch_size, "compiled": args.compile,
                          "seconds": seconds, "cores": os.cpu_count(), "git_commit": evaluate.git_commit(),
                          **{name: version_of(name) for name in ("torchvision", "numpy", "pillow", "lightly", "kornia", "scikit-learn")}}}
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in args.only or parts:
        tidy()
        try:
            result[name] = parts[name]()
        except Exception:  # the others should not be lost
            traceback.print_exc()
            failed.append(name)
            continue
        print(name)
        for row, values in result[name].items():
            shown = "  ".join(f"{k} {v:,.4g}" if isinstance(v, (int, float)) else f"{k} {v}" for k, v in values.items()) if isinstance(values, dict) else values
            print(f"    {row:18}{shown}", flush=True)
        Path(args.out).write_text(json.dumps(result, indent=2) + "\n")  # after each part: a later one may take long, or be cut off
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
