"""Image cache and streaming, measured. A script, not a test:

    python tests/bench_cache.py [--data cifar10-jpeg] [--out FILE.json]

  build     images/s of building the cache beside decoding alone by as many processes: --data, and generated 256-px JPEGs
  stream    bytes/s of shuffled batches from the mapped array beside a sequential read of the file, from the page cache
            and from the disk (its pages dropped before), images of 32 px and of 256 px
  memory    peak of a streamed epoch's own memory (RssAnon; mapped pages are the page cache's) at two sizes of the array
  kills     a build killed (SIGKILL) at 20 random moments, then finished: are array and uninterrupted array equal?
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
import evaluate
import pairs
from bench import photographs, take_turns


def write_jpegs(folder, n, size):
    """n JPEGs of size x size * 4 / 3 pixels: ImageNet's usual shape."""
    folder.mkdir()
    for i, x in enumerate(photographs(64, size).permute(0, 2, 3, 1).numpy()):
        noisy = np.random.default_rng(i).integers(-8, 9, x.shape) + x  # as much for the decoder to do as in a photograph
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).resize((size * 4 // 3, size))
        for k in range(i, n, 64):
            image.save(folder / f"{k:06}.jpg", quality=90)
    return sorted(folder.iterdir())


def decode_part(image_size, part):
    """pairs.fill_part without the writing; a function of this file, so that other processes find it."""
    for path in part:
        pairs.fit(pairs.open_image(path), image_size)
    return []


def take_memory(built):
    """Frees what was built, and touches and frees two gigabytes: a virtual machine's host hands memory out page by page, which is not
    to be measured."""
    shutil.rmtree(built, ignore_errors=True)
    np.ones(1 << 31, np.uint8)


def bench_build(data, scratch):
    """Images/s of whole calls, start of the processes and index included; by as many processes, which either write what they decode or
    forget it."""
    rows, built = {}, scratch / "built"
    sets = {"256 px": (write_jpegs(scratch / "jpegs", 6000, 256), 256)}
    if data:
        sets[f"{Path(data).name}, 32 px"] = (pairs.list_folder(Path(data), "train")[0], 32)
    for name, (files, size) in sets.items():
        def decoding():
            list(pairs.in_parts(partial(decode_part, size), files, "decoding alone"))

        def building():
            pairs.cached(files, len(files), size, "building", cache=built)

        t = take_turns({"decode": decoding, "build": building}, 60, partial(take_memory, built))
        rows[name] = {"images": len(files), "decode_per_s": len(files) / t["decode"], "build_per_s": len(files) / t["build"], "ratio": t["decode"] / t["build"]}
    return rows


def write_array(file, n, size):
    """An array of n images such as the cache has, mapped: torch uint8 (n, 3, size, size)."""
    block = photographs(64, size).numpy().tobytes()
    with open(file, "wb") as out:
        for _ in range(n // 64):
            out.write(block)
    return pairs.mapped(file, (n, 3, size, size))


def drop(file):
    """Asks the system to forget the file's pages, so that the next read comes from the disk."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_whole(file, buffer=bytearray(1 << 23)):
    with open(file, "rb", buffering=0) as opened:
        while opened.readinto(buffer):
            pass


def read_shuffled(images, batch_size):
    """Every image once as an anchor or a partner, in random order, in batches."""
    for _ in pairs.streamed(images, torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(batch_size), "cpu"):
        pass


def bench_stream(scratch, gigabytes):
    rows = {}
    for size, batch_size in ((32, 512), (256, 256)):
        n, file = int(gigabytes * 1e9 / (3 * size**2)) // 64 * 64, scratch / f"{size}.bin"
        images = write_array(file, n, size)
        for where in ("page cache", "disk"):
            times = {"stream": [], "read": []}
            for _ in range(4):
                for name, call in (("read", lambda: read_whole(file)), ("stream", lambda: read_shuffled(images, batch_size))):
                    if where == "disk":
                        images = None  # mapped pages cannot be dropped
                        drop(file)
                        images = pairs.mapped(file, (n, 3, size, size))
                    before = time.perf_counter()
                    call()
                    times[name].append(time.perf_counter() - before)
            read, stream = (np.median(times[k][1:]) for k in ("read", "stream"))
            rows[f"{size} px, {where}"] = {"gb": images.nbytes / 1e9, "read_gb_per_s": images.nbytes / read / 1e9, "stream_gb_per_s": images.nbytes / stream / 1e9, "ratio": read / stream}
        file.unlink()
    return rows


def bench_memory(scratch, gigabytes):
    rows = {}
    for factor in (1, 4):
        n, file = int(factor * gigabytes / 4 * 1e9 / (3 * 256**2)) // 64 * 64, scratch / "memory.bin"
        write_array(file, n, 256)
        code = ("import sys, torch, pairs\n"
                "anon = lambda: next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('RssAnon'))\n"
                "images = pairs.mapped(sys.argv[1], (int(sys.argv[2]), 3, 256, 256))\n"
                "before, peak = anon(), 0\n"
                "for _ in pairs.streamed(images, torch.randperm(len(images)).split(256), 'cpu'):\n"
                "    peak = max(peak, anon())\n"
                "print(before, peak)\n")
        done = subprocess.run([sys.executable, "-c", code, file, str(n)], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
        before, peak = map(int, done.stdout.split())
        rows[f"{factor} x"] = {"array_mb": n * 3 * 256**2 / 1e6, "peak_mb": peak / 1e3, "of_it_streaming_mb": (peak - before) / 1e3}
        file.unlink()
    return rows


def bench_kills(scratch, kills=20):
    """Each attempt is killed at a random moment after its start, alone or with its processes; the last one ends."""
    files = write_jpegs(scratch / "killed", 8000, 256)
    code = ("import sys, pathlib, pairs\n"
            "if __name__ == '__main__':\n"
            "    print('start', flush=True)\n"
            "    files = sorted(pathlib.Path(sys.argv[1]).iterdir())\n"
            "    pairs.cached(files, len(files), 128, '', cache=sys.argv[2])\n")
    (scratch / "build.py").write_text(code)
    environment, rng = dict(os.environ, PYTHONPATH=str(Path(pairs.__file__).parent)), random.Random(0)
    command = [sys.executable, scratch / "build.py", scratch / "killed", scratch / "cache"]
    decoded, left = [], 0
    for k in range(kills):
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.6))
        left += child.poll() is None
        (os.killpg if k % 2 else os.kill)(child.pid, signal.SIGKILL)
        child.wait()
        decoded.append(sum(int((np.fromfile(f, np.uint8) == 1).sum()) for f in (scratch / "cache").glob("*/done.bin")))
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    images, _ = pairs.cached(files, len(files), 128, "", cache=scratch / "cache")
    whole, _ = pairs.cached(files, len(files), 128, "", cache=scratch / "uninterrupted")
    return {"kills": {"killed_while_it_ran": left, "of": kills, "decoded_after_each": str(decoded), "images": len(files), "equal": bool(torch.equal(images, whole))}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a folder of class folders with train/ [only generated images]")
    parser.add_argument("--gigabytes", type=float, default=4, help="size of the streamed array [4]")
    parser.add_argument("--only", nargs="+", choices=["build", "stream", "memory", "kills"], help="[all]")
    parser.add_argument("--scratch", help="folder for some 5 GB of files, on the disk to be measured [the system's for temporary files]")
    parser.add_argument("--out", default="runs/bench-cache.json", help="[runs/bench-cache.json]")
    args = parser.parse_args()
    result = {"machine": {"torch": torch.__version__, "cores": os.cpu_count(), "python": sys.version.split()[0], "pillow": PIL.__version__,
                          "cpu": torch.cpu.get_capabilities().get("cpu_name"), "git_commit": evaluate.git_commit()}}
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        scratch = Path(scratch)
        parts = {"build": lambda: bench_build(args.data, scratch), "stream": lambda: bench_stream(scratch, args.gigabytes),
                 "memory": lambda: bench_memory(scratch, args.gigabytes), "kills": lambda: bench_kills(scratch)}
        for name in args.only or parts:
            result[name] = parts[name]()
            print(name)
            for row, values in result[name].items():
                print(f"    {row:24}" + "  ".join(f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()), flush=True)
            Path(args.out).write_text(json.dumps(result, indent=2) + "\n")  # after each part: a later one may fail


if __name__ == "__main__":
    main()
