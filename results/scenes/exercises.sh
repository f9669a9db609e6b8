#!/usr/bin/env bash
# What exercises 4 and 5 of the README come to, in exercises.txt. Minutes on two cores; from the repository's root:
#     bash results/scenes/exercises.sh [python]
set -e
python=${1:-.venv/bin/python}
runs=$(mktemp -d)
train() {  # what is changed in the script (for sed), the script, its options: the end of each epoch and the probe on held-out categories
  what=$1 script=$2
  shift 2
  sed "$what" "$script" | "$python" - "$@" --out "$runs/$((++n))" > "$runs/output.txt"
  "$python" - "$runs/$n/log.jsonl" << 'EOF'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
ends = {line["epoch"]: line for line in lines}.values()
for name in "loss", "embedding_std", "effective_rank":
    print(f"  {name:15}", *(f"{line[name]:6.2f}" for line in ends))
EOF
  grep 'linear probe  scenes-held-out' "$runs/output.txt"
}
for method in simclr simsiam moco byol; do
  echo "4. $method.py --pairs semantic, by epoch"
  train "" $method.py --pairs semantic
done
echo "4. simclr.py --pairs semantic without the projector's last BatchNorm"
train '/BatchNorm1d(projection_dim)/d' simclr.py --pairs semantic
echo "5. simsiam.py --pairs augmented --epochs 2"
train "" simsiam.py --pairs augmented --epochs 2
echo "5. the same without the stop-gradient"
train 's/, z.detach()/, z/' simsiam.py --pairs augmented --epochs 2
