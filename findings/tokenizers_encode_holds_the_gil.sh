#!/usr/bin/env bash
# Surprise: `Tokenizer.encode` of the tokenizers library holds Python's lock (GIL) for its whole work, although that work is
#   Rust: moved to a thread it stops the event loop all the same. `encode_batch` with one text releases the lock; its ids are
#   the same.
# Why it matters here: a text of 3.9 MB was tokenized "off the event loop" with asyncio.to_thread, and every other client waited
#   for seconds. Puna encodes long pieces as batches of one.
# Source: tokenizers 0.23.3, bindings/python/src/tokenizer.rs; https://github.com/huggingface/tokenizers
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
TOKENIZERS_PARALLELISM=false "$folder/venv/bin/python" - <<'PYTHON'
import threading
import time

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

encoder = tokenizers.Tokenizer(models.BPE())
encoder.pre_tokenizer = pre_tokenizers.ByteLevel()
text = "The shop opens at nine o'clock; returns are free within thirty days. " * 20_000
encoder.train_from_iterator([text[:5000]], trainers.BpeTrainer(vocab_size=400))


def longest_pause(work) -> tuple[float, float]:
    """Return how long the work took, and the longest time in which another thread got no turn."""
    pauses, done = [0.0], threading.Event()

    def tick() -> None:
        while not done.is_set():
            begin = time.perf_counter()
            time.sleep(0.001)
            pauses.append(time.perf_counter() - begin)

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    done.set()
    thread.join()
    return seconds, max(pauses)


alone = longest_pause(lambda: encoder.encode(text))
batch = longest_pause(lambda: encoder.encode_batch([text]))
print(f"encode: {alone[0]:.2f} s, another thread waits {alone[1]:.2f} s")
print(f"encode_batch: {batch[0]:.2f} s, another thread waits {batch[1]:.2f} s")
assert encoder.encode(text).ids == encoder.encode_batch([text])[0].ids
assert alone[1] > alone[0] / 2 > batch[1], "the behaviour is gone"
PYTHON
