"""128K: rotation as in transformers at every position, prompts read in pieces, and memory that only the cache takes."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from puna.formats.tokenizer import train_tokenizer
from puna.inference.engine.engine import Engine
from puna.inference.engine.options import EngineOptions
from puna.inference.engine.outputs import Chunk, collect
from puna.inference.engine.sampling.params import SamplingParams
from puna.inference.engine.scheduling import scheduler
from puna.model.attend import attend_behind_prefix, attend_causally, packed_attend
from puna.model.config import SIZES, LlamaConfig
from puna.model.llama import Llama
from puna.model.rope import rope_frequencies, rope_tables

PUBLISHED_CONTEXT = 131_072
SMALL = LlamaConfig(
    dim=32, hidden_dim=64, head_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, vocab_size=520,
    max_context=PUBLISHED_CONTEXT, rope_scaling=SIZES["8b"].rope_scaling,
)  # fmt: skip


def small_model(**changes: Any) -> Llama:
    model = Llama(replace(SMALL, **changes))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3, generator=generator)
    return model.eval()


def complete(model: Llama, prompt: list[int], params: SamplingParams) -> list[Chunk]:
    tokenizer = train_tokenizer(["some words, some words"] * 2, vocab_size=514, split_digits=False)
    engine = Engine(model, tokenizer, options=EngineOptions(max_batch=1))
    engine.submit(prompt, params)
    chunks: list[Chunk] = []
    while engine.has_work:
        chunks += [chunk for _, chunk in engine.step()]
    return chunks


def new_prompt(length: int) -> list[int]:
    return torch.randint(250, (length,), generator=torch.Generator().manual_seed(length)).tolist()


@pytest.mark.parametrize("size", ["8b", "1b"])
def test_rotations_equal_those_of_transformers_at_every_position_up_to_131_071(size: str):
    config = SIZES[size]
    scaling = config.rope_scaling
    assert scaling is not None
    rope = {"rope_type": "llama3", "rope_theta": config.rope_theta, "factor": scaling.factor}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    theirs = LlamaRotaryEmbedding(
        transformers.LlamaConfig(head_dim=config.head_dim, max_position_embeddings=131_072, rope_parameters=rope)
    )
    positions = torch.arange(PUBLISHED_CONTEXT)
    cos, sin = theirs(torch.empty(0), positions[None])
    our_cos, our_sin = rope_tables(positions, rope_frequencies(config), torch.float32)
    half = config.head_dim // 2
    torch.testing.assert_close(our_cos[:, 0], cos[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(our_sin[:, 0, half:], sin[0, :, half:], atol=1e-4, rtol=0)
    assert torch.equal(our_sin[:, 0, :half], -our_sin[:, 0, half:])


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize(("prefix", "length"), [(0, 5), (1, 1), (40, 7), (7, 100)])
def test_attention_behind_a_prefix_equals_attention_over_the_whole(
    prefix: int, length: int, num_heads: int, num_kv_heads: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("puna.model.attend.MASK_ELEMENTS", 300)  # several blocks of queries
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(prefix + length, n, 8, generator=generator) for n in (num_heads, num_kv_heads, num_kv_heads))
    whole = attend_causally(q, k, v)[prefix:]
    behind = attend_behind_prefix(q[prefix:], k.transpose(0, 1), v.transpose(0, 1))
    torch.testing.assert_close(behind, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [64, 65, 200, 1000])
def test_a_prompt_read_in_pieces_gives_the_tokens_and_scores_of_one_read_whole(
    length: int, monkeypatch: pytest.MonkeyPatch
):
    model, prompt = small_model(num_layers=2, num_heads=4, num_kv_heads=2), new_prompt(length)
    params = SamplingParams(max_tokens=20, temperature=0.0, logprobs=3, echo_logprobs=True)
    whole = collect(complete(model, prompt, params), length)
    monkeypatch.setattr(scheduler, "IDLE_TOKENS", 64)
    pieces = collect(complete(model, prompt, params), length)
    assert pieces.ids == whole.ids and len(pieces.prompt_logprobs) == length
    for ours, theirs in zip(
        (*pieces.prompt_logprobs[1:], *pieces.logprobs), (*whole.prompt_logprobs[1:], *whole.logprobs), strict=True
    ):
        assert ours is not None and theirs is not None
        assert ours.id == theirs.id and ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def test_what_goes_wrong_in_a_later_piece_ends_that_request_and_frees_its_room(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scheduler, "IDLE_TOKENS", 64)
    model = small_model()
    with torch.no_grad():
        model.embed_tokens.weight[249] = float("nan")
    tokenizer = train_tokenizer(["some words, some words"] * 2, vocab_size=514, split_digits=False)
    engine = Engine(model, tokenizer, options=EngineOptions(max_batch=1))
    params = SamplingParams(max_tokens=3, temperature=0.0)
    clean = [token % 240 for token in new_prompt(150)]
    expected = collect(complete(model, clean, params), 150).ids
    engine.submit([*clean[:100], 249, *clean[101:]], params)
    engine.submit(clean, params)
    ends: dict[int, Chunk] = {}
    ids: list[int] = []
    while engine.has_work:
        for request_id, chunk in engine.step():
            ids += chunk.ids if request_id == 1 else ()
            if chunk.finish_reason:
                ends[request_id] = chunk
    assert ends[0].finish_reason == "error" and ends[1].finish_reason == "length"
    assert tuple(ids) == tuple(expected)


MEASURE = """
import json, resource, sys
import torch
sys.path.insert(0, {tests!r})
from test_long_context import complete, new_prompt, small_model
from puna.inference.engine.sampling.params import SamplingParams

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

length = int(sys.argv[1])
model, params = small_model(), SamplingParams(max_tokens=2, temperature=0.0)
complete(model, new_prompt(4096), params)
before = peak()
chunks = complete(model, new_prompt(length), params)
print(json.dumps({{"grown": peak() - before, "tokens": sum(len(chunk.ids) for chunk in chunks)}}))
"""


@pytest.mark.slow
def test_a_prompt_of_131_070_tokens_runs_in_the_memory_of_its_cache(request: pytest.FixtureRequest):
    script = MEASURE.format(tests=str(request.path.parent))
    done = subprocess.run(
        [sys.executable, "-c", script, str(PUBLISHED_CONTEXT - 2)], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    cache_bytes = 2 * PUBLISHED_CONTEXT * SMALL.num_kv_heads * SMALL.head_dim * 4
    assert told["tokens"] == 2
    # The masks of a call, the prompt as Python integers and its ids as tensors; 64 MiB would be 512 bytes a token.
    assert told["grown"] < cache_bytes + 64 * 2**20, told


@pytest.mark.slow
def test_far_logits_of_a_long_prompt_equal_those_of_one_read_whole():
    model, prompt = small_model(), new_prompt(20_000)
    params = SamplingParams(max_tokens=0, logprobs=1, echo_logprobs=True)
    scored = collect(complete(model, prompt, params), len(prompt)).prompt_logprobs
    with torch.no_grad():
        hidden = model(torch.tensor(prompt), torch.arange(len(prompt)), packed_attend([len(prompt)]))
        expected = torch.log_softmax(model.logits(hidden[-500:-1]), -1).gather(-1, torch.tensor(prompt[-499:])[:, None])
    ours = torch.tensor([entry.logprob for entry in scored[-499:] if entry])
    torch.testing.assert_close(ours, expected[:, 0], atol=1e-4, rtol=0)
