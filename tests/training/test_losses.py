"""Losses over a vocabulary in chunks: values and gradients equal those of the logits as a whole."""

import pytest
import torch
import torch.nn.functional as F

from puna.model.config import LlamaConfig
from puna.model.llama import Llama
from puna.training.objectives import losses
from puna.training.objectives.losses import Rows, summed_over_tokens, token_log_probabilities

VOCAB = 96


@pytest.fixture(autouse=True)
def seven_at_once_and_three_of_these(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_VALUES", 7 * VOCAB)
    monkeypatch.setattr(losses, "TILE_VALUES", 3 * VOCAB)


def model_of(*, is_tied: bool) -> Llama:
    model = Llama(LlamaConfig(16, 32, 8, 1, 2, 1, VOCAB, 64, tie_embeddings=is_tied))
    model.initialize(0)
    return model


def terms(logits_CV: torch.Tensor, rows: Rows) -> dict[str, torch.Tensor]:
    surprise = F.cross_entropy(logits_CV, rows["targets"], reduction="none")
    return {"loss": (surprise * rows["weights"]).sum(), "squares": (logits_CV**2).sum()}


@pytest.mark.parametrize("num_tokens", [1, 7, 30])
@pytest.mark.parametrize("is_tied", [False, True])
def test_sums_and_gradients_are_those_of_all_logits_at_once(num_tokens: int, is_tied: bool):
    model = model_of(is_tied=is_tied)
    hidden_MD = torch.randn(num_tokens, 16, requires_grad=True)
    rows = {"targets": torch.randint(VOCAB, (num_tokens,)), "weights": torch.rand(num_tokens)}
    head = model.embed_tokens if model.lm_head is None else model.lm_head

    def gradients(found: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return list(torch.autograd.grad(found["loss"] * 3, [hidden_MD, *head.parameters()]))

    whole, chunked = terms(model.logits(hidden_MD), rows), summed_over_tokens(model, hidden_MD, rows, terms)
    assert {name: value.item() for name, value in chunked.items()} == pytest.approx(
        {name: value.item() for name, value in whole.items()}, rel=1e-5
    )
    for one, other in zip(gradients(chunked), gradients(whole), strict=True):
        torch.testing.assert_close(one, other)


def test_without_trained_tokens_the_sums_are_zero():
    model, rows = model_of(is_tied=False), {"targets": torch.zeros(0, dtype=torch.long), "weights": torch.zeros(0)}
    found = summed_over_tokens(model, torch.zeros(0, 16, requires_grad=True), rows, terms)
    found["loss"].backward()
    assert found["loss"].item() == 0


def test_a_frozen_head_gets_no_gradient_and_passes_it_on():
    model = model_of(is_tied=False).requires_grad_(False)
    hidden_MD = torch.randn(9, 16, requires_grad=True)
    rows = {"targets": torch.randint(VOCAB, (9,)), "weights": torch.ones(9)}
    summed_over_tokens(model, hidden_MD, rows, terms)["loss"].backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    chunked, hidden_MD.grad = hidden_MD.grad, None
    terms(model.logits(hidden_MD), rows)["loss"].backward()
    torch.testing.assert_close(chunked, hidden_MD.grad)


def test_log_probabilities_of_tokens_and_their_gradients_are_those_of_all_logits_at_once():
    model, weights_M = model_of(is_tied=True), torch.rand(30)
    hidden_MD, targets_M = torch.randn(30, 16, requires_grad=True), torch.randint(VOCAB, (30,))
    whole_M = -F.cross_entropy(model.logits(hidden_MD), targets_M, reduction="none")
    chunked_M = token_log_probabilities(model, hidden_MD, targets_M)
    torch.testing.assert_close(chunked_M, whole_M)
    inputs = [hidden_MD, model.embed_tokens.weight]
    one, other = (torch.autograd.grad((x_M * weights_M).sum(), inputs) for x_M in (chunked_M, whole_M))
    torch.testing.assert_close(one, other)
