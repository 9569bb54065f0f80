from __future__ import annotations

import copy

import pytest
import torch

from models.networks.blocks import (
    ResidualBlock,
    ResidualBlock3d,
    ResidualBlockP3d,
    as_clips,
    as_frames,
    fold_batch_norm,
)
from tests.models.test_registry import NETWORKS, small, walks


def test_clips_and_frames_are_two_views_of_the_same_maps() -> None:
    frames = torch.randn(6, 2, 4, 3)
    clips = as_clips(frames, 3)
    assert clips.shape == (2, 2, 3, 4, 3)
    assert torch.equal(clips[1, :, 2], frames[5])
    assert torch.equal(as_frames(clips), frames)


def test_channels_last_maps_change_their_view_without_a_copy() -> None:
    frames = torch.randn(6, 2, 4, 3).to(memory_format=torch.channels_last)
    clips = as_clips(frames, 3)
    assert as_frames(clips).data_ptr() == clips.data_ptr() == frames.data_ptr()
    assert clips.flatten(3).data_ptr() == frames.data_ptr()


@pytest.mark.parametrize("block", [ResidualBlock, ResidualBlockP3d, ResidualBlock3d])
@pytest.mark.parametrize(("width", "stride"), [(4, 1), (4, 2), (6, 1), (6, 2)])
def test_a_block_changes_width_and_size_and_never_time(
    block: type[ResidualBlock], width: int, stride: int
) -> None:
    clips = torch.randn(2, 4, 3, 8, 6)
    maps = as_frames(clips) if block is ResidualBlock else clips
    out = block(4, width, stride)(maps)
    out = as_clips(out, 3) if block is ResidualBlock else out
    assert out.shape == (2, width, 3, 8 // stride, 6 // stride)


@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_folding_batch_normalisation_changes_no_embedding(
    name: str, config: dict[str, object]
) -> None:
    network = small(name, config).train()
    with torch.no_grad():
        network(walks(4, 3, seed=1))  # statistics that are not the identity
    folded = copy.deepcopy(network).eval()
    fold_batch_norm(folded)
    fold_batch_norm(folded)  # a second time changes nothing
    with torch.inference_mode():
        found, wanted = (n(walks(2, 3)).embeddings for n in (folded, network.eval()))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not any("norm" in key for key in folded.state_dict())


def test_a_network_in_training_is_not_folded() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        fold_batch_norm(small("gaitbase", {}).train())
