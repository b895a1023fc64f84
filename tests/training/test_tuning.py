"""Losses and gradients of training are those of transformers and peft; adapters go from one to the other and back."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers

from puna.data.packing import Batch
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.adapters.adapter import open_adapter, read_lora, read_magnitudes
from puna.formats.checkpoint.adapters.save import save_adapter
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.checkpoint.source import disk_name
from puna.model.adapters.adapted import AdapterShape, adapted_modules, adapters_off, add_adapter, attach
from puna.model.attend import packed_attend
from puna.model.config import LlamaConfig
from puna.model.llama import Linear, Llama
from puna.model.quantization import quantized
from puna.model.quantization.quantized import QuantizedLinear, round_linears, rounded
from puna.model.quantization.scheme import FP8, INT8, Scheme
from puna.pipeline.errors import ConfigError
from puna.testing.tiny_checkpoint import save, tokenizer
from puna.training.objectives.next_token import NextToken

LENGTHS = (23, 40, 9)
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "v_proj"]},
    "all matrices": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ["o_proj", "up_proj"], "use_rslora": True},
    "dora": {"target_modules": ["k_proj", "down_proj"], "use_dora": True},
    "the head, too": {"target_modules": ["gate_proj", "lm_head"]},
    "dora of the head": {"target_modules": ["lm_head"], "use_dora": True},
}


def new_batch() -> Batch:
    generator = torch.Generator().manual_seed(7)
    num_tokens = sum(LENGTHS)
    ids = torch.randint(500, (2, num_tokens), generator=generator)
    return Batch(ids[0], ids[1], torch.rand(num_tokens, generator=generator) < 0.6, LENGTHS)


def loss_of(model: Llama, batch: Batch) -> torch.Tensor:
    """Compute the loss as training does: packed, in chunks, only what is trained."""
    hidden_TD = model(batch.tokens_T, batch.positions_T, packed_attend(batch.lengths), dtype=torch.float32)
    objective = NextToken(ChatFormat(tokenizer()), True, False)
    return objective.losses(model, hidden_TD, batch)["loss"] / objective.num_counted(batch)


def reference_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Compute the loss with transformers, one document at a time, from whole logits."""
    parts = zip(*(x.split(batch.lengths) for x in (batch.tokens_T, batch.targets_T, batch.trained_T)), strict=True)
    total = torch.zeros(())
    for tokens, targets, is_trained in parts:
        logits = model(tokens[None]).logits[0].float()
        total = total + F.cross_entropy(logits[is_trained], targets[is_trained], reduction="sum")
    return total / batch.trained_T.sum()


def gradients_of(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    loss.backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def peft_name(name: str) -> str:
    """Return PEFT's name in memory of one of an adapter's tensors: "layers.0.mlp.up_proj.down_RI"."""
    path, _, part = name.rpartition(".")
    parts = {"down_RI": "lora_A.default.weight", "up_OR": "lora_B.default.weight"}
    module = disk_name(f"{path}.weight").removesuffix(".weight")
    return f"base_model.model.{module}.{parts.get(part, 'lora_magnitude_vector.default.weight')}"


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name, gradient in ours.items():
        assert gradient.abs().max() > 0, name
        scale = theirs[name].abs().max().item()
        torch.testing.assert_close(
            gradient, theirs[name], atol=1e-4 * scale, rtol=1e-4, msg=lambda m, n=name: f"{n} {m}"
        )


def peft_model(base: Path, **settings: Any) -> Any:
    """Return PEFT's model with an adapter that is not at its start: every matrix has a gradient."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        if "magnitude" in name:
            parameter.data = parameter.data * 1.1
    return adapted


def ours_from(base: Path, adapter_path: Path) -> Llama:
    """Read an adapter to go on training it."""
    model, adapter = Checkpoint.open(base).load(torch.float32), open_adapter(adapter_path)
    attach(model, read_lora(adapter), read_magnitudes(adapter), is_rank_stabilized=adapter.is_rank_stabilized)
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    save(path)
    return path


@pytest.mark.parametrize("is_tied", [False, True])
def test_loss_and_gradients_of_all_weights_are_those_of_transformers(tmp_path: Path, is_tied: bool):
    save(tmp_path, tied=is_tied)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    model, batch = Checkpoint.open(tmp_path).load(torch.float32), new_batch()
    ours, theirs = loss_of(model, batch), reference_loss(reference, batch)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    gradients = {disk_name(name): gradient for name, gradient in gradients_of(model, ours).items()}
    assert_same(gradients, gradients_of(reference, theirs))
    assert len(gradients) == 20 - is_tied + 1


@pytest.mark.parametrize("variant", ADAPTERS)
def test_loss_and_gradients_of_an_adapter_are_those_of_peft(base: Path, tmp_path: Path, variant: str):
    reference, batch = peft_model(base, **ADAPTERS[variant]), new_batch()
    reference.save_pretrained(tmp_path, save_embedding_layers=False)
    model = ours_from(base, tmp_path)
    ours, theirs = loss_of(model, batch), reference_loss(reference, batch)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    gradients = {peft_name(name): gradient for name, gradient in gradients_of(model, ours).items()}
    assert_same(gradients, gradients_of(reference, theirs))


def test_with_dropout_the_gradients_are_those_of_peft_for_the_same_draws(base: Path, tmp_path: Path):
    settings = {"target_modules": "all-linear", "lora_dropout": 0.3}
    reference, batch = peft_model(base, **settings).train(), new_batch()
    batch = Batch(batch.tokens_T, batch.targets_T, batch.trained_T, (sum(LENGTHS),))
    reference.save_pretrained(tmp_path)
    model = ours_from(base, tmp_path).train()
    for module in adapted_modules(model).values():
        module.dropout = 0.3
    without = loss_of(ours_from(base, tmp_path), batch).item()
    torch.manual_seed(5)
    ours = loss_of(model, batch)
    torch.manual_seed(5)
    theirs = reference_loss(reference, batch)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5) != pytest.approx(without, rel=1e-5)
    gradients = {peft_name(name): gradient for name, gradient in gradients_of(model, ours).items()}
    assert_same(gradients, gradients_of(reference, theirs))
    assert loss_of(model.eval(), batch).item() == pytest.approx(without)


@pytest.mark.parametrize("variant", ADAPTERS)
def test_an_adapter_of_ours_gives_the_same_logits_in_peft_and_read_back(base: Path, tmp_path: Path, variant: str):
    settings = ADAPTERS[variant]
    targets = settings["target_modules"]
    shape = AdapterShape(
        ["all"] if targets == "all-linear" else targets,
        4,
        6.0,
        settings.get("use_rslora", False),
        settings.get("use_dora", False),
    )
    model, batch = Checkpoint.open(base).load(torch.float32), new_batch()
    plain = logits_of(model, batch)
    add_adapter(model, shape, seed=3)
    torch.testing.assert_close(logits_of(model, batch), plain)
    step_by_hand(model, batch)
    ours = logits_of(model, batch)
    assert (ours - plain).abs().max() > 0.05
    save_adapter(tmp_path, model, base_name="somebody/base")
    reference = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(reference, tmp_path)
    parts = batch.tokens_T.split(batch.lengths)
    with torch.no_grad():
        theirs = torch.cat([loaded(part[None]).logits[0] for part in parts])
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(logits_of(ours_from(base, tmp_path), batch), ours)
    with adapters_off(model):
        torch.testing.assert_close(logits_of(model, batch), plain)


def logits_of(model: Llama, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(batch.tokens_T, batch.positions_T, packed_attend(batch.lengths)))


def step_by_hand(model: Llama, batch: Batch) -> None:
    for _ in range(2):
        optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.05)
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_an_adapter_with_patterns_of_ranks_and_alphas_is_written_as_it_was_read(base: Path, tmp_path: Path):
    reference = peft_model(
        base,
        target_modules=["q_proj", "gate_proj"],
        rank_pattern={"q_proj": 3},
        alpha_pattern={r"^model\.layers\.1\.mlp.gate_proj$": 5, "q_proj": 11},
    )
    reference.save_pretrained(tmp_path / "theirs")
    model = ours_from(base, tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    save_adapter(tmp_path / "ours", model, base_name="somebody/base")
    fresh = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    again, batch = peft.PeftModel.from_pretrained(fresh, tmp_path / "ours"), new_batch()
    with torch.no_grad():
        one, other = (each(batch.tokens_T[None]).logits for each in (reference, again))
    torch.testing.assert_close(one, other)
    assert logits_of(model, batch).shape == logits_of(ours_from(base, tmp_path / "ours"), batch).shape
    torch.testing.assert_close(logits_of(model, batch), logits_of(ours_from(base, tmp_path / "ours"), batch))


@pytest.mark.parametrize("scheme", [Scheme("int", 4, 16), INT8, Scheme("int", 8, 16)], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("has_magnitudes", [False, True])
def test_over_rounded_weights_the_gradients_are_those_over_the_floats_they_stand_for(
    scheme: Scheme, has_magnitudes: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(quantized, "BLOCK_VALUES", 700)  # a matrix is several blocks of rows
    integers, floats, batch = wide_llama(), wide_llama(), new_batch()
    round_linears(integers, scheme)
    for path, module in integers.named_modules():
        if isinstance(module, QuantizedLinear):
            floats.get_submodule(path).weight.data = module.dequantize()  # pyright: ignore
    shape = AdapterShape(["all"], 4, 8.0, has_magnitudes=has_magnitudes)
    found = []
    for model in (integers, floats):
        add_adapter(model, shape, seed=2)
        for module in adapted_modules(model).values():
            torch.nn.init.normal_(module.up_OR, std=0.1, generator=torch.Generator().manual_seed(4))
        found.append(gradients_of(model, loss_of(model, batch)))
    assert_same(*found)
    assert len(found[0]) == 14 * (2 + has_magnitudes)


def test_over_float8_there_is_no_adapter():
    model = wide_llama()
    linear = model.get_submodule("layers.1.mlp.up_proj")
    assert isinstance(linear, Linear)
    model.set_submodule("layers.1.mlp.up_proj", rounded(linear, FP8))
    with pytest.raises(ConfigError, match="stored as float8"):
        add_adapter(model, AdapterShape(["all"], 2, 4.0), seed=0)
    add_adapter(model, AdapterShape(["q_proj"], 2, 4.0), seed=0)


def wide_llama() -> Llama:
    """A network whose rows are whole groups of 16."""
    model = Llama(LlamaConfig(48, 80, 16, 2, 4, 2, tokenizer().vocab_size, 256))
    model.initialize(0)
    return model


def saved_for_backward(model: Llama, batch: Batch) -> int:
    """Count the bytes that a forward pass keeps, once for each storage, weights and inputs of the model left out."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.state_dict().values(), batch.tokens_T)}
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch.tokens_T, batch.positions_T, packed_attend(batch.lengths), dtype=torch.float32)
    return sum(sizes.values())


def test_no_rounded_weight_is_kept_as_floats_until_the_backward_pass():
    batch = Batch(torch.arange(4), torch.arange(4), torch.ones(4, dtype=torch.bool), (4,))
    floats, integers = wide_llama(), wide_llama()
    round_linears(integers, Scheme("int", 4, 16))
    for model in (floats, integers):
        add_adapter(model, AdapterShape(["v_proj"], 2, 4.0), seed=0)
    as_floats = 4 * sum(p.numel() for name, p in floats.layers.named_parameters() if "proj" in name)
    kept = {name: saved_for_backward(model, batch) for name, model in (("floats", floats), ("integers", integers))}
    assert kept["integers"] <= kept["floats"] < as_floats


def test_what_is_frozen_gets_neither_gradients_nor_places_in_the_optimizer(base: Path):
    from puna.training.loop.optimizer import make_optimizer
    from puna.training.settings import Optim

    model = Checkpoint.open(base).load(torch.bfloat16)
    add_adapter(model, AdapterShape(["q_proj"], 2, 4.0, has_magnitudes=True), seed=0)
    optimizer = make_optimizer(model, Optim())
    trained = [each for group in optimizer.param_groups for each in group["params"]]
    assert {each.dtype for each in trained} == {torch.float32} and len(trained) == 2 * 3
    loss_of(model, new_batch()).backward()
    frozen = [each for each in model.parameters() if each.dtype == torch.bfloat16]
    assert len(frozen) == 21 and all(each.grad is None for each in frozen)
