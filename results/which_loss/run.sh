#!/usr/bin/env bash
# Which loss on which data: every loss on 3 seeds, then the best two against cross_entropy on 12
# fresh seeds; and the liberal losses alone, with 12 seeds, on the noisy labels of single raters.
# With no argument all five comparisons, one after the other:
#   results/which_loss/run.sh [digits | fashion_mnist_10k | movie_reviews |
#     movie_reviews_single_rater | single_rater_liberal]
# Interrupted, the same command continues. Fashion-MNIST is Debian's package dataset-fashion-mnist.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
losses=('strict_*' 'liberal_*' cross_entropy)
# The three losses that do not learn from a cold start (see README) once more, with a warm-up.
warmed=()
for loss in liberal_parabolic liberal_circle liberal_cosine; do
  warmed+=("$loss --loss_warmup_ratio 0.3")
done

seeds=(--screen 3 --top 2 --confirm 12)

compare() {  # NAME, then what follows --
  local name=$1
  shift
  hf-losses compare "${seeds[@]}" --jobs 2 --output_dir "results/which_loss/$name" \
    --losses "${losses[@]}" "$@" --use_cpu --save_strategy no --disable_tqdm true
}

digits() {
  losses+=("${warmed[@]}")
  compare digits -- recipes/image_classification.py --num_train_epochs 12 \
    --eval_strategy steps --eval_steps 41 --dataloader_num_workers 0
}

fashion_mnist_10k() {
  losses+=("${warmed[@]}")
  compare fashion_mnist_10k -- recipes/image_classification.py \
    --dataset_name "${FASHION_MNIST:-/usr/share/datasets/fashion-mnist}" --max_train_samples 10000 \
    --augmentation none --model_type resnet --config_overrides \
    'embedding_size=16,hidden_sizes=[16,32,64],depths=[1,1,1],layer_type=basic' \
    --num_train_epochs 2 --per_device_train_batch_size 64 --per_device_eval_batch_size 500 \
    --learning_rate 3e-3 --eval_strategy steps --eval_steps 39 --dataloader_num_workers 0
}

texts() {  # NAME, TASK
  compare "$1" -- recipes/glue.py --task_name "$2" --max_train_samples 1024 --max_length 48 \
    --num_train_epochs 2 --learning_rate 2e-4 --warmup_steps 0 --bf16 --eval_strategy no
}

movie_reviews() { texts movie_reviews movie_reviews; }
movie_reviews_single_rater() { texts movie_reviews_single_rater movie_reviews_single_rater; }

single_rater_liberal() {
  losses=(liberal_exp "${warmed[@]}" cross_entropy)
  seeds=(--seeds 12)
  texts single_rater_liberal movie_reviews_single_rater
}

everything=(digits fashion_mnist_10k movie_reviews_single_rater movie_reviews single_rater_liberal)

for name in "${@:-${everything[@]}}"; do
  case " ${everything[*]} " in
    *" $name "*) ("$name") ;;
    *) echo "unknown comparison $name; see the head of this file" >&2; exit 2 ;;
  esac
done
