#!/usr/bin/env bash
# Fine-tuning of all layers on the 20 held-out categories of scenes, with all of their 200 labelled images and with a tenth of them (one
# of each category); SimCLR with either kind of pairs, seeds 0 to 2, and the same from a random start. The runs are those that
# results/lists/run.sh has left in runs/lists. 200 steps, as a thousand would take an hour and a half. Two at a time, one thread each:
# about twenty minutes. The fine-tunings here are of commit 952fe7c. From the repository's root:
#     bash results/finetune/run.sh [python]
set -e
python=${1:-.venv/bin/python} out=results/finetune
export OMP_NUM_THREADS=1
for fraction in 0.1 1; do
  for seed in 0 1 2; do
    for pairs in augmented semantic; do
      echo "evaluate.py finetune runs/lists/simclr-$pairs-seed$seed --data scenes-held-out --fraction $fraction --steps 200"
    done
  done
done | xargs -P 2 -L 1 "$python" > runs/finetune.txt
for run in runs/lists/simclr-{augmented,semantic}-seed[0-2]; do
  cp "$run/result.json" "results/lists/$(basename "$run")/"  # beside what that folder has of the run
done
grep -vE '^fine-tuning|^classifying' runs/finetune.txt > $out/output.txt
"$python" evaluate.py compare results/lists/simclr-{augmented,semantic}-seed[0-2] --measure "finetune scenes-held-out, 0.1 of the labels" "finetune scenes-held-out, 1 of the labels" "transfer scenes-held-out" --out $out
