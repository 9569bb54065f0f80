"""The rule alone, on similarities as they may be."""

from __future__ import annotations

from service.recognition.conflict import (
    ComparedWalk,
    ConflictingWalk,
    EnrolmentConflict,
    Resemblance,
    find_conflicts,
)

THRESHOLD = 0.7


def new_walk(
    name: str, *, kept: float | None = None, sent: float | None = None, other: float | None = None
) -> ComparedWalk:
    def alike(subject: str, value: float | None, sequence: str | None) -> Resemblance | None:
        return None if value is None else Resemblance(subject, value, sequence)

    return ComparedWalk(
        name,
        kept=alike("bert", kept, "bert-1"),
        sent=alike("bert", sent, None),
        other=alike("anna", other, "anna-1"),
    )


def found(*walks: ComparedWalk) -> list[tuple[str, str]]:
    return [(one.name, one.reason) for one in find_conflicts("bert", walks, THRESHOLD)]


def test_nobody_is_mistaken_for_anybody_in_an_empty_gallery() -> None:
    assert found(new_walk("a")) == []
    assert found(new_walk("a", sent=0.2), new_walk("b", sent=0.2)) == []


def test_the_first_walk_of_a_new_subject_conflicts_where_somebody_else_would_be_a_match() -> None:
    assert found(new_walk("a", other=0.69)) == []
    assert found(new_walk("a", other=0.7)) == [("a", "nearer_to_another")]


def test_a_walk_nearer_to_another_is_no_conflict_below_the_threshold() -> None:
    assert found(new_walk("other view", kept=0.3, other=0.65)) == []


def test_a_walk_conflicts_where_another_is_a_match_and_nearer_than_all_of_its_own() -> None:
    assert found(new_walk("a", kept=0.8, other=0.9)) == [("a", "nearer_to_another")]
    assert found(new_walk("a", kept=0.9, other=0.8)) == []
    assert found(new_walk("a", kept=0.9, other=0.9)) == []


def test_one_stray_walk_among_right_ones_is_found() -> None:
    right = new_walk("right", kept=0.95, sent=0.9, other=0.4)
    also_right = new_walk("also right", kept=0.9, sent=0.9, other=0.3)
    stray = new_walk("stray", kept=0.4, sent=0.5, other=0.9)
    assert found(right, stray, also_right) == [("stray", "nearer_to_another")]


def test_walks_sent_together_cannot_vouch_for_each_other_beside_an_enrolled_person() -> None:
    one = new_walk("one", kept=0.4, sent=0.97, other=0.8)
    two = new_walk("two", kept=0.5, sent=0.97, other=0.85)
    (conflict,) = find_conflicts("bert", (one, two), THRESHOLD)
    assert (conflict.name, conflict.reason) == ("two", "nearer_to_another")
    assert conflict.own == Resemblance("bert", 0.5, "bert-1")


def test_another_view_is_vouched_for_by_the_walks_sent_with_it_where_these_are_known() -> None:
    known = new_walk("known view", kept=0.9, sent=0.6, other=0.5)
    new_view = new_walk("new view", kept=0.4, sent=0.8, other=0.75)
    same_view = new_walk("again", kept=0.4, sent=0.8, other=0.6)
    assert found(known, new_view, same_view) == []


def test_several_walks_of_a_new_subject_that_match_somebody_are_remarked_on_not_refused() -> None:
    walks = (new_walk("one", sent=0.9, other=0.75), new_walk("two", sent=0.9, other=0.8))
    (remark,) = find_conflicts("bert", walks, THRESHOLD)
    assert (remark.name, remark.reason, remark.grave) == ("two", "matches_another", False)


def test_the_error_names_both_subjects_with_the_similarity_to_each() -> None:
    other = Resemblance("anna", 0.9, "anna-1")
    nothing = ConflictingWalk("sequence", "nearer_to_another", "bert", None, other)
    error = EnrolmentConflict([nothing], THRESHOLD)
    assert error.status == 409
    assert "nothing of 'bert' is enrolled" in error.detail
    assert error.members()["conflicts"][0]["own"] == {
        "subject_id": "bert",
        "similarity": None,
        "sequence_id": None,
    }
    assert error.members()["threshold"] == THRESHOLD
