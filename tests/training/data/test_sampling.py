from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.options import Clip, OrderedClip, RandomLengthClip, UnorderedClip
from training.data.pack import Pack, PackWriter
from training.data.sampling import Sampler, SamplingError, draw_frames

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=8)


def sampler(pack: Pack, subjects: int = 4, sequences: int = 3, **options: int) -> Sampler:
    clip: Clip = OrderedClip(frames=10, skip=2)
    seed = options.pop("seed", 0)
    return Sampler(pack, subjects=subjects, sequences=sequences, clip=clip, seed=seed, **options)


def test_a_batch_has_p_subjects_with_k_sequences_each_subject_by_subject(small_pack: Pack) -> None:
    for step in range(50):
        labels = small_pack.labels[sampler(small_pack).plan(step).sequences].reshape(4, 3)
        assert (labels == labels[:, :1]).all()
        assert len(set(labels[:, 0].tolist())) == 4


def test_a_sequence_comes_twice_only_where_a_subject_has_too_few(small_pack: Pack) -> None:
    few = small_pack.subjects.index("s5")  # has 2 sequences
    for step in range(50):
        sequences = sampler(small_pack).plan(step).sequences.reshape(4, 3)
        for row in sequences:
            distinct = len(set(row.tolist()))
            assert distinct == 3 or small_pack.labels[row[0]] == few


def test_all_subjects_and_all_their_sequences_are_drawn_equally_often(small_pack: Pack) -> None:
    steps = 1500
    counts = np.zeros(len(small_pack), int)
    for step in range(steps):
        np.add.at(counts, sampler(small_pack).plan(step).sequences, 1)
    by_subject = np.bincount(small_pack.labels, weights=counts)
    expected = steps * 4 * 3 / 6
    assert np.abs(by_subject / expected - 1).max() < 0.08
    own = counts[small_pack.labels == 0]
    assert np.abs(own / own.mean() - 1).max() < 0.12


def test_a_step_is_a_pure_function_of_seed_and_step(small_pack: Pack) -> None:
    once, again = sampler(small_pack), sampler(small_pack)
    forward = [once.plan(step) for step in range(6)]
    for step in reversed(range(6)):
        plan = again.plan(step)
        np.testing.assert_array_equal(plan.sequences, forward[step].sequences)
        np.testing.assert_array_equal(plan.frames.indices, forward[step].frames.indices)
    other = sampler(small_pack, seed=1).plan(0)
    assert other.sequences.tolist() != forward[0].sequences.tolist()


def test_ranks_share_the_batch_of_one_process_and_each_has_whole_subjects(small_pack: Pack) -> None:
    whole = sampler(small_pack).plan(7)
    parts = [sampler(small_pack, rank=rank, world_size=2).plan(7) for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate([p.sequences for p in parts]), whole.sequences)
    np.testing.assert_array_equal(
        np.concatenate([p.frames.indices for p in parts]), whole.frames.indices
    )
    for part in parts:
        labels = small_pack.labels[part.sequences]
        assert np.bincount(labels)[np.unique(labels)].tolist() == [3, 3]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"subjects": 7}, "has 6"),
        ({"subjects": 3, "world_size": 2}, "2 ranks"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"sequences": 0}, "at least 1"),
        ({"seed": -1}, "negative"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(
    small_pack: Pack, options: dict[str, int], reason: str
) -> None:
    with pytest.raises(SamplingError, match=reason):
        sampler(small_pack, **options)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 40), st.integers(0, 20), st.integers(0, 10**6))
def test_an_ordered_clip_is_increasing_within_a_window_of_frames_and_skip(
    available: list[int], frames: int, skip: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    drawn = draw_frames(OrderedClip(frames=frames, skip=skip), np.array(available), rng)
    assert drawn.lengths is None
    assert drawn.indices.shape == (len(available), frames)
    for row, length in zip(drawn.indices, available, strict=True):
        assert row.min() >= 0
        assert row.max() < length
        # Repeating the sequence makes jumps back; undone, the frames increase within the window.
        steps = np.diff(row) % length
        steps[steps == 0] = length
        if length >= frames + skip:
            assert (np.diff(row) > 0).all()
            assert row[-1] - row[0] < frames + skip
        elif frames > 1 and skip == 0:
            assert (steps == 1 if length > 1 else steps == length).all()


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 40), st.integers(0, 10**6))
def test_an_unordered_clip_repeats_frames_only_where_there_are_too_few(
    available: list[int], frames: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    drawn = draw_frames(UnorderedClip(frames=frames), np.array(available), rng)
    for row, length in zip(drawn.indices, available, strict=True):
        assert set(row.tolist()) <= set(range(length))
        if length >= frames:
            assert len(set(row.tolist())) == frames


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 20), st.integers(0, 20), st.integers(0, 10**6))
def test_a_random_length_clip_keeps_its_range_and_repeats_only_where_it_must(
    available: list[int], least: int, more: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    clip = RandomLengthClip(least=least, most=least + more)
    drawn = draw_frames(clip, np.array(available), rng)
    assert drawn.lengths is not None
    assert drawn.indices.shape[1] == drawn.lengths.max()
    for row, length, own in zip(drawn.indices, available, drawn.lengths, strict=True):
        assert least <= own <= least + more
        assert set(row.tolist()) <= set(range(length))
        if length >= own:
            assert len(set(row[:own].tolist())) == own


def test_clips_start_anywhere_and_unordered_ones_hold_every_frame_equally_often() -> None:
    rng = np.random.default_rng(0)
    available = np.full(4000, 20, np.int64)
    starts = draw_frames(OrderedClip(frames=5), available, rng).indices[:, 0]
    counts = np.bincount(starts, minlength=20)
    assert (counts[16:] == 0).all()
    assert np.abs(counts[:16] / 250 - 1).max() < 0.25
    unordered = draw_frames(UnorderedClip(frames=5), available, rng).indices
    for place in (0, 4):  # the order is random too
        assert np.abs(np.bincount(unordered[:, place], minlength=20) / 200 - 1).max() < 0.3
    own = draw_frames(RandomLengthClip(least=3, most=6), available, rng).lengths
    assert own is not None
    assert np.abs(np.bincount(own)[3:] / 1000 - 1).max() < 0.15


def test_the_options_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, training.data, training.data.sampling; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def scenes_pack(tmp_path: Path, scenes_of: dict[str, str], walks: int = 3) -> Pack:
    """People with so many walks in each of the scenes that their letters name."""
    with PackWriter(tmp_path / "scenes.pack", "binary") as writer:
        for subject, scenes in scenes_of.items():
            for scene in scenes:
                for walk in range(walks):
                    frames = np.zeros((12, 64, 64), np.uint8)
                    writer.add(subject, f"nm-{walk}", "090", frames, {"scene": scene})
        return writer.finish()


TWO_PLACES = {f"s{n}": "abcd" if n < 5 else "efgh" for n in range(10)}


def test_groups_of_a_batch_are_filmed_in_the_same_scenes_and_each_person_in_several(
    tmp_path: Path,
) -> None:
    pack = scenes_pack(tmp_path, TWO_PLACES)
    shapes = set()
    for step in range(40):
        drawn = sampler(pack, 6, 3, same_scene=3).plan(step).sequences.reshape(6, 3)
        labels = pack.labels[drawn]
        assert (labels == labels[:, :1]).all()
        assert len(set(labels[:, 0].tolist())) == 6
        scenes = np.array(
            [[pack.sequences[one].metadata["scene"] for one in row] for row in drawn]
        ).reshape(2, 3, 3)
        for group in scenes:
            assert len(set(group[0])) == 3  # a person's walks are from other scenes
            assert {tuple(row) for row in group} == {
                tuple(group[0])
            }  # strangers' are from them too
        shapes.add(tuple(scenes[:, 0, 0]))
    assert len(shapes) > 10


def test_more_walks_than_scenes_take_scenes_again_and_too_few_walks_come_twice(
    tmp_path: Path,
) -> None:
    pack = scenes_pack(tmp_path, {"s0": "ab", "s1": "ab"}, walks=2)
    drawn = sampler(pack, 2, 6, same_scene=2).plan(0).sequences.reshape(2, 6)
    for row in drawn:
        scenes = [pack.sequences[one].metadata["scene"] for one in row[:4]]
        assert sorted(scenes) == ["a", "a", "b", "b"]
        assert len(set(row[:4].tolist())) == 4


def test_where_groups_run_out_others_fill_the_batch(tmp_path: Path) -> None:
    pack = scenes_pack(tmp_path, {"s0": "a", "s1": "a", "s2": "a", "s3": "b", "s4": "c"})
    for step in range(10):
        labels = pack.labels[sampler(pack, 4, 2, same_scene=2).plan(step).sequences][::2]
        assert len(set(labels.tolist())) == 4
        assert set(labels[:2].tolist()) <= {0, 1, 2}


def test_scenes_are_drawn_as_a_pure_function_of_seed_and_step(tmp_path: Path) -> None:
    pack = scenes_pack(tmp_path, TWO_PLACES)
    one, two = (sampler(pack, 6, 3, same_scene=3, seed=seed) for seed in (0, 1))
    again = sampler(pack, 6, 3, same_scene=3)
    assert one.plan(4).sequences.tolist() == again.plan(4).sequences.tolist()
    assert one.plan(4).sequences.tolist() != two.plan(4).sequences.tolist()


def test_a_pack_without_such_scenes_is_refused(tmp_path: Path, small_pack: Pack) -> None:
    with pytest.raises(SamplingError, match="says its scene"):
        sampler(small_pack, 4, same_scene=2)
    pack = scenes_pack(tmp_path, TWO_PLACES)
    with pytest.raises(SamplingError, match="no groups of 4"):
        sampler(pack, 6, same_scene=4)
    with pytest.raises(SamplingError, match="no groups of 0"):
        sampler(pack, 6, same_scene=0)
    with pytest.raises(SamplingError, match="no 6 subjects"):
        sampler(pack, 6, same_scene=6)
