#!/usr/bin/env bash
# Seed 0 of results/scenes again on two cores of an AMD EPYC with AVX2, which compute in float32 (those have AVX512-BF16 and compute
# in bf16): one thread each, commit dd39342. Seeds 0 to 2 were planned; there was time for one. From the repository's root:
#     bash results/scenes/float32/run.sh [python]
set -e
python=${1:-.venv/bin/python} runs=runs/float32 out=results/scenes/float32
export OMP_NUM_THREADS=1
for method in byol simclr moco simsiam; do
  for pairs in augmented semantic; do
    echo "$method.py --pairs $pairs --out $runs/$method-$pairs-scenes-seed0"
  done
done | xargs -P 2 -L 1 "$python" > runs-output.txt
mv runs-output.txt $out/output.txt  # only now: a changed file would mark the runs' commit as dirty
for run in $runs/*; do
  mkdir -p "$out/$(basename "$run")"
  cp "$run"/{config.json,result.json,log.jsonl} "$out/$(basename "$run")/"
done
"$python" evaluate.py compare $out/{simclr,moco,byol,simsiam}-*-seed0 --out $out
