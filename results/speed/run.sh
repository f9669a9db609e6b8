#!/usr/bin/env bash
# Speed, on a machine that does nothing else; about half an hour on two cores. From the repository's root:
#     bash results/speed/run.sh [python]        (lightly, kornia and scikit-learn take part if they can be imported)
# The bench; then the README's first command three times, in turn with that of commit 6cd63be, before the work on speed, which
# is given today's heads, to do the same work. On other machines, and of earlier code (README.md beside this file):
#     python tests/bench.py --only augment step methods compile epoch --out results/speed/bench-epyc-avx2.json
#     python tests/bench.py --only augment step precision epoch probe --out results/speed/bench-intel.json
# with what they printed in .txt, and the turns of the first command in first-command-epyc-avx2.txt and -intel.txt.
set -e
python=${1:-.venv/bin/python}
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
"$python" tests/bench.py --out results/speed/bench.json > results/speed/bench.txt
scratch=$(mktemp -d)
mkdir "$scratch/before"
git archive 6cd63be | tar x -C "$scratch/before"
for turn in 1 2 3; do
  for at in "$scratch/before" .; do
    start=$(date +%s.%N)
    (cd "$at" && "$python" byol.py --pairs semantic --hidden-dim 1024 --projection-dim 256 --out "$scratch/run" > "$scratch/output.txt")
    echo "$([ "$at" = . ] && echo now || echo 6cd63be) turn $turn: $(echo "$(date +%s.%N) - $start" | bc) s, $(grep "linear probe  scenes-held-out" "$scratch/output.txt")"
    rm -r "$scratch/run"
  done
done > results/speed/first-command.txt  # and a line of your own at its top: machine, versions, commit
rm -r "$scratch"
