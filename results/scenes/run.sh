#!/usr/bin/env bash
# The study on the embedded scenes: four methods x two kinds of pairs x three seeds, default options.
# Two runs at a time, one thread each, which uses two cores best. Then the table. From the repository's root:
#     bash results/scenes/run.sh [python]
set -e
python=${1:-.venv/bin/python}
for seed in 0 1 2; do
  for method in simclr moco byol simsiam; do
    for pairs in augmented semantic; do
      echo "$method.py --pairs $pairs --seed $seed"
    done
  done
done | OMP_NUM_THREADS=1 xargs -P 2 -L 1 "$python" > results/scenes/output.txt 2>&1
for run in runs/*-scenes-seed[012]; do
  mkdir -p "results/scenes/$(basename "$run")"
  cp "$run"/{config.json,result.json,log.jsonl} "results/scenes/$(basename "$run")/"
done
"$python" results/scenes/table.py > results/scenes/table.md
