from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.networks.pooling import (
    check_lengths,
    max_over_sequences,
    mean_over_windows,
    strip_pool,
    windows,
)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    levels=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_the_ragged_maximum_and_its_gradient_equal_a_loop_over_sequences(
    lengths: list[int], levels: int, seed: int
) -> None:
    """Few levels make ties, negative values, and maxima in any frame."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-levels, levels, (sum(lengths), 3, 2, 2), generator=generator).float()
    weight = torch.randn(len(lengths), 3, 2, 2, generator=generator)
    ragged, looped = values.clone().requires_grad_(), values.clone().requires_grad_()

    found = max_over_sequences(ragged, check_lengths(lengths, sum(lengths)))
    wanted = torch.stack([piece.amax(0) for piece in torch.split(looped, lengths)])
    assert torch.equal(found, wanted)

    (ragged_gradient,) = torch.autograd.grad((found * weight).sum(), ragged)
    (looped_gradient,) = torch.autograd.grad((wanted * weight).sum(), looped)
    torch.testing.assert_close(ragged_gradient, looped_gradient)


def test_hundreds_of_equal_maxima_share_a_half_precision_gradient_exactly() -> None:
    frames = torch.ones(512, 1, dtype=torch.bfloat16, requires_grad=True)
    pooled = max_over_sequences(frames, torch.tensor([512]))
    (gradient,) = torch.autograd.grad(pooled.sum(), frames)
    assert torch.equal(gradient, torch.full((512, 1), 1 / 512, dtype=torch.bfloat16))


def test_the_ragged_maximum_does_not_mind_the_memory_format() -> None:
    frames = torch.randn(6, 3, 4, 2, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([4, 2])
    last = max_over_sequences(frames.to(memory_format=torch.channels_last), lengths)
    assert torch.equal(last, max_over_sequences(frames, lengths))


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=6), frames=st.integers(1, 40))
def test_windows_cover_each_sequence_in_nearly_equal_shares(
    lengths: list[int], frames: int
) -> None:
    cut, counts = windows(lengths, frames)
    assert len(counts) == len(lengths)
    for length, count in zip(lengths, counts, strict=True):
        own, cut = cut[:count], cut[count:]
        assert sum(own) == length
        assert max(own) - min(own) <= 1
        assert count == 1 or abs(length - count * frames) <= frames / 2
    assert not cut


def test_a_sequence_stays_whole_up_to_one_and_a_half_windows() -> None:
    assert windows([44, 45, 127], 30) == ([44, 23, 22, 32, 32, 32, 31], [1, 2, 4])


def test_the_mean_is_of_a_sequences_own_windows() -> None:
    pooled = torch.tensor([[1.0], [3.0], [5.0], [9.0]])
    assert mean_over_windows(pooled, [2, 1, 1]).tolist() == [[2.0], [5.0], [9.0]]


def test_strips_are_pooled_by_maximum_plus_mean_head_first() -> None:
    maps = torch.randn(2, 3, 8, 5, generator=torch.Generator().manual_seed(0))
    pooled = strip_pool(maps, 4)
    assert pooled.shape == (2, 3, 4)
    for part in range(4):
        strip = maps[:, :, 2 * part : 2 * part + 2].flatten(2)
        torch.testing.assert_close(pooled[:, :, part], strip.amax(-1) + strip.mean(-1))
