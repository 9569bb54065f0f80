from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import (
    convert_conv2d_weight_memory_format,
    convert_conv3d_weight_memory_format,
)

from models.networks.blocks import (
    ResidualBlock,
    ResidualBlock3d,
    ResidualBlockP3d,
    Shortcut,
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


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 5), (7, 4)])
def test_a_shortcut_is_a_strided_pointwise_convolution(size: tuple[int, int], stride: int) -> None:
    shortcut = Shortcut(nn.Conv3d(3, 5, 1, bias=False), stride).eval()
    clips = torch.randn(2, 3, 4, *size)
    wanted = functional.conv3d(clips, shortcut.conv.weight, stride=(1, stride, stride))
    found = shortcut(clips)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, shortcut.norm(wanted))


@pytest.mark.parametrize("block", [ResidualBlock, ResidualBlockP3d, ResidualBlock3d])
def test_channels_last_changes_no_gradient_of_a_narrow_block(block: type[ResidualBlock]) -> None:
    # Here torch's strided pointwise convolution would crash, see `Shortcut`.
    plain = block(4, 8, 2)
    last = copy.deepcopy(plain)
    convert_conv2d_weight_memory_format(last, torch.channels_last)
    convert_conv3d_weight_memory_format(last, torch.channels_last_3d)
    for clips in (torch.randn(n, 4, 5, 16, 12) for n in (3, 8, 5)):
        maps = as_frames(clips) if block is ResidualBlock else clips
        results = []
        for network in (plain, last):
            network.zero_grad()
            out = network(maps)
            out.square().mean().backward()
            results.append([out, *(weights.grad for weights in network.parameters())])
        torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-5)


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
