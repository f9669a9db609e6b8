#!/usr/bin/env bash
# The image cache, on two cores and the disk that is there; about ten minutes. From the repository's root:
#     bash results/cache/run.sh cifar10-jpeg [python]
set -e
python=${2:-.venv/bin/python}
"$python" tests/bench_cache.py --data "$1" --only build --out results/cache/build.json
"$python" tests/bench_cache.py --only stream memory --out results/cache/stream-memory.json
"$python" tests/bench_cache.py --only kills --out results/cache/kills.json
