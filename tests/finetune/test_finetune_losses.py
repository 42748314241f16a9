"""The losses: zero where nothing is left to learn, blind to padding, and as large as their papers say."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.finetune.losses import distillation_loss, hidden_loss, label_loss


@given(st.integers(0, 1000), st.floats(0.5, 8.0))
def test_distillation_is_the_softened_divergence(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 4, 5, generator=generator)
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    by_hand = (p * (p.log() - q.log())).sum(-1).mean() * temperature**2
    found = distillation_loss(student, teacher, temperature)
    torch.testing.assert_close(found, by_hand, rtol=1e-3, atol=1e-5)
    assert found >= -1e-6
    assert distillation_loss(teacher, teacher, temperature).abs() < 1e-6


def test_the_divergence_is_not_the_other_way_round() -> None:
    teacher, student = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    p = teacher.softmax(-1)
    expected = float(torch.log(torch.tensor(2.0)) + (p * p.log()).sum())
    torch.testing.assert_close(distillation_loss(student, teacher, 1.0).item(), expected)
    assert abs(distillation_loss(teacher, student, 1.0).item() - expected) > 0.1


def test_a_regression_learns_the_number_itself() -> None:
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]])
    assert distillation_loss(student, teacher, 3.0).item() == 2.0
    assert label_loss(student, torch.tensor([1.0, 4.0])).item() == 2.0


def test_hidden_states_count_where_there_are_tokens_and_after_the_embeddings() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = tuple(torch.randn(2, 6, 8, generator=generator) for _ in range(3))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    student = tuple(states.clone() for states in teacher)
    student[0].add_(1)
    student[1][0, 4:] = 100.0
    assert hidden_loss(student, teacher, mask).item() == 0.0
    student[2].mul_(1.5)
    torch.testing.assert_close(hidden_loss(student, teacher, mask), torch.tensor(0.25 / 2))
    # A block of large activations weighs no more than another.
    scaled = [tuple(10 * states for states in side) for side in (student, teacher)]
    torch.testing.assert_close(hidden_loss(*scaled, mask), torch.tensor(0.25 / 2))
