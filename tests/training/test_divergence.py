"""Divergences and buckets equal plain formulas in float64, their gradients too."""

import pytest
import torch
import torch.nn.functional as F

from puna.training.objectives.distillation.divergence import Divergence, buckets
from puna.training.objectives.distillation.stored_labels import teacher_buckets

KINDS = [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.1)]


def plain(kind: str, beta: float, p_CN: torch.Tensor, q_CN: torch.Tensor) -> torch.Tensor:
    """The definitions, term by term; 0 log 0 is 0."""

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.where(a > 0, a * (a.clamp(min=1e-300).log() - b.clamp(min=1e-300).log()), 0.0).sum()

    if kind != "jsd":
        return kl(p_CN, q_CN) if kind == "forward_kl" else kl(q_CN, p_CN)
    mixture_CN = beta * p_CN + (1 - beta) * q_CN
    return beta * kl(p_CN, mixture_CN) + (1 - beta) * kl(q_CN, mixture_CN)


def label_of(logits_CV: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    log_CV = F.log_softmax(logits_CV, dim=-1)
    top = log_CV.topk(top_k, dim=-1)
    return top.indices, top.values, (1 - top.values.exp().sum(-1)).clamp(min=0).log()


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize("top_k", [1, 5, 40])
def test_a_label_gives_the_divergence_of_its_buckets_and_its_gradient(kind: str, beta: float, top_k: int):
    generator = torch.Generator().manual_seed(0)
    teacher_CV, student_CV = (3 * torch.randn(7, 40, generator=generator) for _ in range(2))
    targets_C = torch.randint(40, (7,), generator=generator)
    ids_CK, top_CK, tail_C = label_of(teacher_CV, top_k)
    logits_CV = student_CV.clone().requires_grad_()
    found = buckets(logits_CV, ids_CK, torch.ones_like(ids_CK, dtype=torch.bool), targets_C)
    value = Divergence(kind=kind, beta=beta).between(teacher_buckets(top_CK, tail_C), found.log_CN)
    (value - 0.3 * found.target_C.sum()).backward()

    plain_CV = student_CV.double().requires_grad_()

    def bucketed(logits_CV: torch.Tensor) -> torch.Tensor:
        probs_CV = logits_CV.double().softmax(-1)
        top_CK = probs_CV.gather(-1, ids_CK)
        rest_C1 = probs_CV.scatter(-1, ids_CK, 0.0).sum(-1, keepdim=True)
        return torch.cat([top_CK, rest_C1], dim=-1)

    expected = plain(kind, beta, bucketed(teacher_CV), bucketed(plain_CV))
    (expected + 0.3 * F.cross_entropy(plain_CV, targets_C, reduction="sum")).backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    assert logits_CV.grad is not None and plain_CV.grad is not None
    torch.testing.assert_close(logits_CV.grad.double(), plain_CV.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_columns_without_an_entry_change_nothing(kind: str, beta: float):
    teacher_CV, student_CV = (torch.randn(3, 30, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    ids_CK, top_CK, tail_C = label_of(teacher_CV, 4)
    padded_ids_CK = torch.cat([ids_CK, ids_CK[:, :1].expand(-1, 3)], dim=-1)
    padded_CK = torch.cat([top_CK, torch.full((3, 3), -torch.inf)], dim=-1)
    results = []
    for ids, top in ((ids_CK, top_CK), (padded_ids_CK, padded_CK)):
        logits_CV = student_CV.clone().requires_grad_()
        found = buckets(logits_CV, ids, top.isfinite(), torch.zeros(3, dtype=torch.long))
        value = Divergence(kind=kind, beta=beta).between(teacher_buckets(top, tail_C), found.log_CN)
        value.backward()
        results += [(value.item(), logits_CV.grad)]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_distributions_far_apart_give_numbers(kind: str, beta: float):
    logits_CV = torch.zeros(1, 20)
    logits_CV[0, 3] = 200.0
    logits_CV.requires_grad_()
    found = buckets(logits_CV, torch.tensor([[5]]), torch.tensor([[True]]), torch.tensor([7]))
    value = Divergence(kind=kind, beta=beta).between(
        teacher_buckets(torch.tensor([[0.0]]), torch.tensor([-torch.inf])), found.log_CN
    )
    value.backward()
    assert value.isfinite() and logits_CV.grad is not None and logits_CV.grad.isfinite().all()


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_a_student_that_equals_its_teacher_is_at_no_distance(kind: str, beta: float):
    logits_CV = torch.randn(4, 50, generator=torch.Generator().manual_seed(3))
    ids_CK, top_CK, tail_C = label_of(logits_CV, 6)
    found = buckets(logits_CV, ids_CK, torch.ones_like(ids_CK, dtype=torch.bool), ids_CK[:, 0])
    distance = Divergence(kind=kind, beta=beta).between(teacher_buckets(top_CK, tail_C), found.log_CN)
    assert abs(distance.item()) < 1e-5
