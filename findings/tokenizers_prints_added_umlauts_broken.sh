#!/usr/bin/env bash
# Surprise: with the byte-level decoder of Llama 3 and GPT-2, the tokenizers library prints the added token "Grüße" as
#   "Gr" and two U+FFFD, and the added token "Ã©" as "é". The decoder takes every character of an added token for the
#   printable stand-in of a byte, if all of them are in that table: most accented Latin letters are.
# Why it matters here: `add_tokens(["Grüße"])` encodes to one id, and transformers prints the model's answer broken. The
#   receipt of `puna import` compares what is printed with the library, and must not call the right text wrong.
# Source: run by us; tokenizers 0.23.3, decoders.ByteLevel.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

print("tokenizers", version("tokenizers"))
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={each: index for index, each in enumerate(alphabet)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
for text, expected in [("Grüße", "Gr\ufffd\ufffde"), ("Ã©", "é"), ("日本", "日本")]:
    tokenizer.add_tokens([AddedToken(text, normalized=False)])
    (index,) = tokenizer.encode(text).ids
    print(f"{text!r} is token {index}, printed as {tokenizer.decode([index])!r}")
    assert tokenizer.decode([index]) == expected, "the behaviour is gone"
PYTHON
