from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.batches import BatchSource, join, unpack
from training.data.options import OrderedClip, RandomLengthClip
from training.data.pack import Pack, PackError, PackWriter, decode_frames
from training.data.sampling import Plan, Sampler

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
    ),
]


def source(pack: Pack, **options: object) -> BatchSource:
    arguments = {"subjects": 4, "sequences": 3, "clip": OrderedClip(frames=10, skip=2), "seed": 0}
    return BatchSource(pack, **(arguments | options))  # type: ignore[arg-type]


def prefetchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batch-prefetch"]


@pytest.mark.parametrize("device", DEVICES)
def test_unpacking_on_the_device_equals_numpy(device: str) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (3, 5, 512), dtype=np.uint8)
    rows[0, 0, :256] = np.arange(256)
    found = unpack(torch.from_numpy(rows).to(device), "binary").cpu()
    np.testing.assert_array_equal(found.numpy(), decode_frames(rows, "binary"))
    grey = np.random.default_rng(1).integers(0, 256, (2, 3, 4096), dtype=np.uint8)
    found = unpack(torch.from_numpy(grey).to(device), "grey").cpu()
    np.testing.assert_array_equal(found.numpy(), grey.reshape(2, 3, 64, 64))


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_holds_the_frames_of_the_plan_with_their_labels(
    small_pack: Pack, device: str
) -> None:
    batch = source(small_pack, device=device).batch(3)
    plan = Sampler(
        small_pack, subjects=4, sequences=3, clip=OrderedClip(frames=10, skip=2), seed=0
    ).plan(3)
    assert batch.silhouettes.shape == (12, 10, 64, 64)
    assert batch.silhouettes.device.type == device
    assert batch.labels.dtype == torch.int64
    assert batch.lengths is None
    np.testing.assert_array_equal(batch.sequences, plan.sequences)
    for i, sequence in enumerate(plan.sequences):
        record = small_pack.sequences[sequence]
        expected = small_pack.silhouettes(sequence, plan.frames.indices[i].tolist())
        np.testing.assert_array_equal(batch.silhouettes[i].cpu().numpy(), expected)
        assert small_pack.subjects[int(batch.labels[i])] == record.subject == batch.subjects[i]
        assert (batch.conditions[i], batch.views[i]) == (record.condition, record.view)


def test_iterating_ahead_gives_the_same_batches_as_asking_for_each(small_pack: Pack) -> None:
    ahead = list(source(small_pack).iterate(start=5, stop=9))
    assert [batch.step for batch in ahead] == [5, 6, 7, 8]
    for batch in ahead:
        alone = source(small_pack).batch(batch.step)
        assert torch.equal(batch.silhouettes, alone.silhouettes)
        assert torch.equal(batch.labels, alone.labels)


def test_resuming_in_the_middle_gives_what_the_whole_run_would_have(small_pack: Pack) -> None:
    whole = [batch.silhouettes for batch in source(small_pack).iterate(stop=6)]
    resumed = [batch.silhouettes for batch in source(small_pack).iterate(start=3, stop=6)]
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], resumed, strict=True))


def test_a_subset_is_labelled_from_zero_without_gaps(small_pack: Pack) -> None:
    part = small_pack.subset(["s1", "s3", "s4", "s5"])
    batch = source(part).batch(0)
    assert sorted(set(batch.labels.tolist())) == [0, 1, 2, 3]
    assert all(part.subjects[n] == s for n, s in zip(batch.labels, batch.subjects, strict=True))


def test_sequences_of_different_lengths_are_joined_end_to_end(small_pack: Pack) -> None:
    batch = source(small_pack, clip=RandomLengthClip(least=3, most=9)).batch(0)
    assert batch.lengths is not None
    assert len(set(batch.lengths)) > 1
    joined = join(batch.silhouettes, batch.lengths)
    assert joined.shape == (sum(batch.lengths), 64, 64)
    start = 0
    for i, length in enumerate(batch.lengths):
        assert torch.equal(joined[start : start + length], batch.silhouettes[i, :length])
        start += length
    assert join(batch.silhouettes, None) is batch.silhouettes


def test_the_prefetch_thread_is_bounded_and_ends_with_the_iterator(
    small_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[int] = []
    plan = Sampler.plan

    def count(self: Sampler, step: int) -> Plan:
        gathered.append(step)
        return plan(self, step)

    monkeypatch.setattr(Sampler, "plan", count)
    batches = source(small_pack, prefetch=2).iterate()
    for _ in range(3):
        next(batches)
    for thread in prefetchers():
        thread.join(0.2)  # time to run ahead as far as it may
    assert len(gathered) <= 3 + 2 + 1
    batches.close()  # type: ignore[attr-defined]
    assert prefetchers() == []


def test_an_error_while_gathering_ahead_is_raised_to_the_consumer(
    small_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Sampler.plan

    def fail(self: Sampler, step: int) -> Plan:
        if step == 2:
            raise OSError("the disk is gone")
        return plan(self, step)

    monkeypatch.setattr(Sampler, "plan", fail)
    batches = source(small_pack).iterate()
    assert [next(batches).step, next(batches).step] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert prefetchers() == []


def test_grey_packs_give_their_levels(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (6, 64, 64), dtype=np.uint8)
    with PackWriter(tmp_path / "grey.pack") as writer:
        writer.add("a", "c", "v", levels)
        writer.add("b", "c", "v", levels)
        pack = writer.finish()
    batch = source(pack, subjects=2, sequences=1, clip=OrderedClip(frames=6)).batch(0)
    np.testing.assert_array_equal(batch.silhouettes[0].numpy(), levels)


def test_a_prefetch_of_nothing_is_refused(small_pack: Pack) -> None:
    with pytest.raises(ValueError, match="prefetch"):
        source(small_pack, prefetch=0)


def test_pose_maps_are_those_of_the_frames(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with PackWriter(tmp_path / "posed.pack") as writer:
        for number in range(4):
            silhouettes = rng.integers(0, 256, (12, 64, 64), dtype=np.uint8)
            maps = np.stack([silhouettes ^ 1, silhouettes ^ 2], 1)
            writer.add(f"s{number % 2}", f"nm-{number}", "090", silhouettes, None, maps)
        pack = writer.finish()
    batch = source(pack, subjects=2, sequences=2, pose=True).batch(3)
    assert batch.pose_maps is not None
    assert torch.equal(batch.pose_maps[:, :, 0], batch.silhouettes ^ 1)
    assert torch.equal(batch.pose_maps[:, :, 1], batch.silhouettes ^ 2)
    assert source(pack, subjects=2, sequences=2).batch(3).pose_maps is None


def test_pose_maps_that_a_pack_lacks_are_refused_at_once(small_pack: Pack) -> None:
    with pytest.raises(PackError, match="has no pose maps"):
        source(small_pack, pose=True)
