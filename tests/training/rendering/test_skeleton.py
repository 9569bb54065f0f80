import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.rendering.skeleton import (
    BONES,
    PARENTS,
    from_angles,
    mirrored_order,
    shortest_rotation,
    to_local,
    to_matrices,
    to_vectors,
    to_world,
)

vectors = st.lists(st.floats(-1.7, 1.7), min_size=3, max_size=3).map(np.array)


@given(vectors)
def test_rotation_vectors_survive_matrices(vector: np.ndarray) -> None:
    assert to_vectors(to_matrices(vector)) == pytest.approx(vector, abs=1e-6)


@given(vectors)
def test_a_rotation_matrix_is_one(vector: np.ndarray) -> None:
    matrix = to_matrices(vector)
    assert matrix @ matrix.T == pytest.approx(np.eye(3), abs=1e-9)
    assert np.linalg.det(matrix) == pytest.approx(1)


def test_euler_angles_multiply_outermost_first() -> None:
    quarter = from_angles("zx", np.array([90.0, 90.0]))
    # First about x: y goes to z; then about z, which leaves it.
    assert quarter @ np.array([0, 1, 0]) == pytest.approx([0, 0, 1])
    assert quarter @ np.array([1, 0, 0]) == pytest.approx([0, 1, 0])


def test_local_and_world_rotations_are_inverse_to_each_other() -> None:
    world = to_matrices(np.random.default_rng(0).normal(0, 0.5, (4, len(BONES), 3)))
    assert np.allclose(to_world(to_local(world)), world)


def test_the_shortest_rotation_turns_one_direction_to_the_other() -> None:
    turned = shortest_rotation(np.array([0.0, 3.0, 1.0]), np.array([1.0, 0.0, 0.0]))
    assert turned @ np.array([0, 3, 1]) / np.sqrt(10) == pytest.approx([1, 0, 0])
    with pytest.raises(ValueError, match="opposite"):
        shortest_rotation(np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.0, -1.0]))


def test_parents_come_before_their_children_and_mirroring_keeps_the_tree() -> None:
    order = mirrored_order()
    for bone, parent in enumerate(PARENTS):
        assert parent < bone
        if parent >= 0:
            assert PARENTS[order[bone]] == order[parent]
