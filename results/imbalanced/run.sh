#!/usr/bin/env bash
# Class weights and focal loss on rare positives (5 %): macro F1 and calibration, paired seeds.
# Interrupted, the same command continues: results/imbalanced/run.sh [SEEDS]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
python results/imbalanced/data.py runs/imbalanced_data
balanced="--loss_kwargs '{\"weight\": \"balanced\"}'"
effective="--loss_kwargs '{\"weight\": \"effective\"}'"
hf-losses compare --seeds "${1:-8}" --jobs 2 --metric f1_macro \
  --output_dir results/imbalanced/movie_reviews \
  --losses cross_entropy focal "cross_entropy $balanced" "cross_entropy $effective" \
  -- recipes/glue.py --train_file runs/imbalanced_data/train.csv \
  --validation_file runs/imbalanced_data/validation.csv --test_file runs/imbalanced_data/test.csv \
  --num_train_epochs 4 --warmup_steps 30 --max_length 32 --bf16 --eval_strategy no \
  --use_cpu --save_strategy no --disable_tqdm true
