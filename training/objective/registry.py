"""What every kind of term computes. A new one: options in `recipe.terms`, a file, a line here."""

from __future__ import annotations

from typing import Any, Final

from training.objective.classics import (
    Boundary,
    CrossEntropy,
    Decoupled,
    Hint,
    Logit,
    LogitRegression,
    Ranking,
    Relation,
    Triplet,
)
from training.objective.distillation.angles import Angles
from training.objective.distillation.correlation import Correlation
from training.objective.distillation.exits import Exits
from training.objective.distillation.fusion import Fuse
from training.objective.distillation.generalised import Generalised
from training.objective.distillation.mutual import Mutual
from training.objective.distillation.query import Query
from training.objective.distillation.relation_networks import RelationNetworks
from training.objective.distillation.views import Views
from training.objective.lesson import Method

METHODS: Final[dict[str, type[Method[Any]]]] = {
    "triplet": Triplet,
    "cross-entropy": CrossEntropy,
    "mutual": Mutual,
    "relation-networks": RelationNetworks,
    "logit": Logit,
    "logit-regression": LogitRegression,
    "decoupled": Decoupled,
    "generalised": Generalised,
    "correlation": Correlation,
    "views": Views,
    "exits": Exits,
    "fusion": Fuse,
    "boundary": Boundary,
    "hint": Hint,
    "ranking": Ranking,
    "relation": Relation,
    "angles": Angles,
    "query": Query,
}
