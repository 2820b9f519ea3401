#!/usr/bin/env bash
# A vocabulary and a LLaMA of 15 million parameters from a corpus, to a GGUF file:
#
#     recipes/tinystories.sh                 TinyStories from the Hugging Face Hub (needs `pip install 'bpe_llama[hub]'`)
#     recipes/tinystories.sh my/texts        any folder, file or glob of .txt, .jsonl, .parquet, .gz, .zst
#
# Seen: 8 MB of English prose with STEPS=80 BATCH=8 LENGTH=256, two cores of a Zen 5 server: 2 minutes in all, 163,840 tokens
# trained on, 2.69 bits per byte of held-out text. That is a test of the recipe, not a model; the defaults need a GPU.
# Run again, it goes on where it ended. Options are environment variables: OUT, VOCAB, STEPS, BATCH, LENGTH, HIDDEN, LAYERS.
set -euo pipefail

corpus="${1:-}"
out="${OUT:-tinystories}"
mkdir -p "$out"

if [ -z "$corpus" ]; then
    hf download roneneldan/TinyStories --repo-type dataset --include 'data/*.parquet' --local-dir "$out/corpus"
    corpus="$out/corpus/data"
fi

# 1. A vocabulary.
if [ ! -e "$out/tokenizer.json" ]; then
    bpe-llama train-tokenizer "$corpus" --vocab-size "${VOCAB:-8192}" --special '<|endoftext|>' \
        --out "$out/tokenizer.json" --no-report
fi

# 2. The corpus as token shards; each document ends with <|endoftext|>.
bpe-llama encode-corpus "$corpus" --tokenizer "$out/tokenizer.json" --out "$out/shards"

# 3. The model. Documents are packed into rows, and attention stays within each.
bpe-llama pretrain "$out/shards" --tokenizer "$out/tokenizer.json" --out "$out/run" --resume \
    --hidden-size "${HIDDEN:-384}" --layers "${LAYERS:-7}" --heads 6 --intermediate-size 1024 \
    --context "${LENGTH:-512}" --sequence-length "${LENGTH:-512}" --batch-size "${BATCH:-32}" --packing best_fit \
    --steps "${STEPS:-5000}" --learning-rate 1e-3 --warmup 200 --schedule warmup_stable_decay \
    --eval-every 500 --save-every 500 --sample-prompt 'Once upon a time' --sample-prompt 'Tom and Lily'

# 4. Another format, and a story.
bpe-llama convert "$out/run/model" "$out/model.gguf"
bpe-llama generate 'Once upon a time' --model "$out/model.gguf" --seed 0
