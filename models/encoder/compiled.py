"""A backbone compiled by OpenVINO, for CPUs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from openvino.passes import ConstantFolding, Manager
from torch import Tensor, nn

from models.card import InputSize
from models.networks.network import FrameBackbone, SequenceBackbone
from models.networks.pooling import max_over_sequences

FRAMES_PER_CALL: Final = 30  # of single frames; with several threads fewer, so that all have some


_ONE_TRACE = threading.Lock()  # torch says nothing of traces in several threads


class CompiledBackbone:
    """Frames to the maximum over time of their maps; not to be called by two threads at once.

    Args:
        backbone: of a GaitBase or a DeepGaitV2, in eval mode, of float32 or of whole numbers; it
            is not changed. Others decide by a walk's length, which is lost when they are traced.
        size: of the frames.
        bfloat16: whether to compute in bfloat16 what would be float32.
        threads: each has one call at a time. They sleep between calls.
    """

    def __init__(
        self,
        backbone: FrameBackbone | SequenceBackbone,
        size: InputSize,
        *,
        bfloat16: bool,
        threads: int,
    ) -> None:
        self._most = None if backbone.takes_whole_sequences else max(1, FRAMES_PER_CALL // threads)
        self._threads = threads
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
            # pinned, the threads of two processes would share a core while another is idle
            "ENABLE_CPU_PINNING": False,
        }
        model, self._owner = converted(backbone, size)
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        self._calls = openvino.AsyncInferQueue(compiled, threads)
        self._calls.set_callback(_keep)

    def __call__(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """Maps `[n, c, h', w']` of uint8 frames `[sum(lengths), h, w]`."""
        pieces: list[NDArray[np.uint8]] = []
        counts = []
        for walk in np.split(frames.numpy(), np.cumsum(lengths)[:-1]):
            own = self._pieces_of(len(walk))
            pieces += np.array_split(walk, own)
            counts.append(own)
        found: list[Any] = [None] * len(pieces)
        for position, piece in enumerate(pieces):
            self._calls.start_async([np.ascontiguousarray(piece)], (found, position))
        self._calls.wait_all()
        maps = torch.from_numpy(np.stack(found))
        return max_over_sequences(maps, torch.tensor(counts))

    def _pieces_of(self, frames: int) -> int:
        """How many pieces a walk is cut into: as many for each thread."""
        if self._most is None:
            return 1
        return min(frames, -(-frames // (self._most * self._threads)) * self._threads)


class _OfBytes(nn.Module):
    """uint8 frames `[s, h, w]` of one sequence to `[c, h', w']`."""

    def __init__(self, backbone: FrameBackbone | SequenceBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, frames: Tensor) -> Tensor:
        return self.backbone.over_clip(frames.float() / 255)


def converted(
    backbone: FrameBackbone | SequenceBackbone, size: InputSize
) -> tuple[openvino.Model, object]:
    """The backbone as OpenVINO's graph, for any number of frames, and who owns its constants.

    By the front end itself: `openvino.convert_model` would report its use to the vendor.
    """
    example = torch.zeros((2, size.height, size.width), dtype=torch.uint8)
    front_end = FrontEndManager().load_by_framework("pytorch")
    with _ONE_TRACE:
        # The check traces again and compares names, which count up with every trace.
        decoder = TorchScriptPythonDecoder(
            _OfBytes(backbone), example_input=(example,), trace_kwargs={"check_trace": False}
        )
        model = front_end.convert(front_end.load(decoder))
    frames = model.inputs[0].get_node()
    frames.set_element_type(openvino.Type.u8)
    frames.set_partial_shape(openvino.PartialShape([-1, size.height, size.width]))
    model.validate_nodes_and_infer_types()
    # ranges of whole numbers must be constants for OpenVINO to see them
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    return model, decoder


def _keep(request: Any, place: tuple[list[Any], int]) -> None:
    found, position = place
    found[position] = request.get_output_tensor().data.copy()
