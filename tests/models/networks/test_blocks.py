from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from models.networks.blocks import (
    ResidualBlock,
    ResidualBlock3d,
    ResidualBlockP3d,
    Shortcut,
    as_clips,
    as_frames,
    fold_batch_norm,
    max_over_time,
)
from models.networks.device import lay_out_for_convolution
from tests.models.networks.test_registry import NETWORKS, small, walks


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


TRAIN_A_NARROW_BLOCK = """
import torch
from torch.nn.utils import convert_conv2d_weight_memory_format
from models.networks.blocks import ResidualBlock
torch.set_num_threads(2)
torch.manual_seed(0)
plain, last = ResidualBlock(8, 16, 2), ResidualBlock(8, 16, 2)
last.load_state_dict(plain.state_dict())
convert_conv2d_weight_memory_format(last, torch.channels_last)
for count in (15, 40, 25):
    gradients = []
    for block in (plain, last):
        frames = torch.linspace(-1, 1, count * 8 * 32 * 22).view(count, 8, 32, 22).sin_()
        frames.requires_grad_(True)
        (block(frames).square() * torch.arange(11)).mean().backward()
        gradients.append(frames.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
print("trained")
"""


@pytest.mark.slow
def test_a_narrow_block_trains_in_channels_last_on_several_threads() -> None:
    # With a strided pointwise convolution this is a segmentation fault: hence another process.
    child = subprocess.run(
        [sys.executable, "-c", TRAIN_A_NARROW_BLOCK], capture_output=True, text=True, check=False
    )
    assert (child.stdout, child.returncode) == ("trained\n", 0), child.stderr


def test_equal_maxima_over_time_share_the_gradient() -> None:
    clips = torch.tensor([1.0, 3.0, 3.0, 2.0]).view(1, 1, 4, 1, 1).requires_grad_()
    most = max_over_time(clips)
    (gradient,) = torch.autograd.grad(most.sum(), clips)
    assert most.tolist() == [[[[3.0]]]]
    assert gradient.flatten().tolist() == [0, 0.5, 0.5, 0]


class Layouts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Strides of gradients beside those of what they are the gradients of."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pairs: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        aten = torch.ops.aten
        rectified = aten.threshold_backward.default
        if func in (rectified, aten.native_batch_norm_backward.default):
            gradient, maps = args[:2]
            self.pairs.append((gradient.stride(), maps.stride()))
        return func(*args, **(kwargs or {}))


DEEP = [one for one in NETWORKS if one[0] in ("gaitbase", "deepgaitv2")]


@pytest.mark.parametrize(("name", "config"), DEEP)
def test_gradients_lie_in_memory_as_maps_do(name: str, config: dict[str, object]) -> None:
    # where they do not, a CPU takes ten times as long over them
    network = small(name, config).train()
    lay_out_for_convolution(network)
    with Layouts() as layouts:
        with torch.autocast("cpu", torch.bfloat16):
            output = network(walks(4, 3, of=name))
        loss = output.embeddings.float().mean() + output.logits.float().mean()
        loss.backward()
    assert len(layouts.pairs) > 20
    assert all(gradient == maps for gradient, maps in layouts.pairs)


@pytest.mark.parametrize(("name", "config"), NETWORKS)
def test_folding_batch_normalisation_changes_no_embedding(
    name: str, config: dict[str, object]
) -> None:
    network = small(name, config).train()
    with torch.no_grad():
        network(walks(4, 3, seed=1, of=name))  # statistics that are not the identity
    folded = copy.deepcopy(network).eval()
    fold_batch_norm(folded)
    fold_batch_norm(folded)  # a second time changes nothing
    with torch.inference_mode():
        found, wanted = (n(walks(2, 3, of=name)).embeddings for n in (folded, network.eval()))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not any("norm.running" in key for key in folded.backbone.state_dict())


def test_a_network_in_training_is_not_folded() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        fold_batch_norm(small("gaitbase", {}).train())
