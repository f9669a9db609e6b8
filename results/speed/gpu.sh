#!/usr/bin/env bash
# What README's Speed leaves "not measured", on a machine with a GPU, one part a call, each of a few minutes. DIR holds
# CIFAR-10 as JPEGs, DIR/train/<class>/ and DIR/test/<class>/. From the repository's root:
#     .venv/bin/python -m pytest -q tests/test_gpu.py                -> does it compute what a CPU computes? (a few minutes)
#     bash results/speed/gpu.sh .venv/bin/python DIR bench           -> results/speed/bench-gpu.json, .txt
#     bash results/speed/gpu.sh .venv/bin/python DIR simclr          -> results/speed/cifar10-gpu/simclr/
#     bash results/speed/gpu.sh .venv/bin/python DIR moco            (and byol, simsiam)
# Further words are options of the bench or the method, say --device cpu --epochs 1 --limit 512 to try it.
set -eo pipefail
python=$1 data=$2 part=$3
shift 3
if [ "$part" = bench ]; then
  "$python" tests/bench.py --workers 16 --out results/speed/bench-gpu.json "$@" | tee results/speed/bench-gpu.txt
  exit
fi
run=runs/gpu-$part to=results/speed/cifar10-gpu/$part start=$(date +%s)
"$python" "$part.py" --pairs augmented --data "$data" --compile --out "$run" "$@" | tee output.part
mkdir -p "$to"
mv output.part "$to/output.txt"
cp "$run"/{config.json,log.jsonl,result.json} "$to"
echo "$(($(date +%s) - start)) seconds from the command to its table" | tee -a "$to/output.txt"
