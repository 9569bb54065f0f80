"""What changes the outline of a body: clothes, hair, shoes, and things that are carried.

Clothes are the body's own surface pushed outwards, and tubes around it where cloth hangs free
(skirts, coats); everything else is a rounded box or ellipsoid fixed to a bone. All is put on in the
reference stance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from training.rendering.body import CARRIED, COLUMNS, Body, Part
from training.rendering.gait import Arms
from training.rendering.skeleton import BONE, BONES, Floats

Side = Literal["left", "right"]

_TRUNK: Final = ("hips", "waist", "spine", "chest", "left_shoulder", "right_shoulder")
_RING: Final = 14


@dataclass(frozen=True)
class Outfit:
    """What a person wears; metres the cloth stands off the body, 0 for none.

    Attributes:
        shirt: trunk; sleeves: arms; trousers: thighs; legs: shanks (flared legs stand off most
            here).
        shoes: around the foot; heels: height of the heel.
        belly: bulge of the trunk ahead (a jacket's front, a belly).
        skirt: length of a free hanging skirt or coat below the hips, in leg lengths (0: none).
        skirt_ease: how far it stands off; skirt_flare: how much wider it gets to the hem.
        collar: thickness of a scarf or collar around the neck.
        hair: volume of the hair on the head; hair_long: how far it falls below the ears.
        hood: volume of a hood, cap or hat.
        brim: of a hat.
    """

    shirt: float = 0.01
    sleeves: float = 0.01
    trousers: float = 0.01
    legs: float = 0.01
    shoes: float = 0.01
    heels: float = 0.0
    belly: float = 0.0
    skirt: float = 0.0
    skirt_ease: float = 0.02
    skirt_flare: float = 0.1
    collar: float = 0.0
    hair: float = 0.0
    hair_long: float = 0.0
    hood: float = 0.0
    brim: float = 0.0


@dataclass(frozen=True)
class Carried:
    """A thing that is carried: what, on which side, how large (1 is usual)."""

    kind: Literal["backpack", "shoulder bag", "hand bag", "suitcase", "box", "phone", "pockets"]
    side: Side
    size: float
    depth: float

    @property
    def arms(self) -> Arms:
        """What the arms do with it."""
        here = 0 if self.side == "left" else 1

        def on_side(value: float, other: float) -> tuple[float, float]:
            return (value, other) if here == 0 else (other, value)

        match self.kind:
            case "backpack":
                return Arms(swing=(0.9, 0.9))
            case "shoulder bag":
                return Arms(swing=on_side(0.6, 1.0), bend=on_side(0.25, 0.0))
            case "hand bag":
                return Arms(swing=on_side(0.45, 1.0))
            case "suitcase":
                return Arms(swing=on_side(0.1, 1.0), lift=on_side(-0.35, 0.0))
            case "box":
                return Arms(swing=(0.08, 0.08), lift=(0.25, 0.25), bend=(1.1, 1.1))
            case "phone":
                return Arms(swing=on_side(0.1, 1.0), lift=on_side(0.5, 0.0), bend=on_side(1.5, 0.0))
            case "pockets":
                return Arms(swing=(0.25, 0.25), lift=(-0.15, -0.15), bend=(0.7, 0.7))


@dataclass(frozen=True)
class Fashion:
    """What everybody in one place and season has in common, in metres unless it says otherwise.

    Attributes:
        warm: by how much shirts and sleeves stand off more than the person's usual ones.
        wide: the same of trousers.
        boots: the same of shoes.
        long: least length of what hangs from the waist, in leg lengths.
        collar: least thickness of a scarf or collar.
        hood: least volume of a hood or cap, of those who cover their head here.
        covered: share of people who do.
    """

    warm: float
    wide: float
    boots: float
    long: float
    collar: float
    hood: float
    covered: float


def draw_fashion(rng: np.random.Generator) -> Fashion:
    """From a summer in shirts to a winter in coats."""
    cold = rng.random()
    return Fashion(
        warm=float(0.035 * cold + rng.normal(0.0, 0.006) - 0.012),
        wide=float(rng.normal(0.003, 0.006)),
        boots=float(max(0.0, rng.normal(0.01, 0.008)) * cold),
        long=float(rng.uniform(0.1, 0.5) if rng.random() < 0.5 * cold else 0.0),
        collar=float(rng.uniform(0.01, 0.03) if rng.random() < 0.6 * cold else 0.0),
        hood=float(rng.uniform(0.01, 0.03)),
        covered=float(rng.random() * 0.5 * cold),
    )


def in_fashion(worn: Outfit, fashion: Fashion, rng: np.random.Generator) -> Outfit:
    """These clothes as somebody wears them in this place and season."""
    hood = fashion.hood if rng.random() < fashion.covered else 0.0
    return replace(
        worn,
        shirt=max(0.002, worn.shirt + fashion.warm),
        sleeves=max(0.0, worn.sleeves + 0.8 * fashion.warm),
        trousers=max(0.004, worn.trousers + fashion.wide),
        legs=max(0.008, worn.legs + 1.5 * fashion.wide),
        shoes=worn.shoes + fashion.boots,
        skirt=max(worn.skirt, fashion.long),
        collar=max(worn.collar, fashion.collar),
        hood=max(worn.hood, hood),
    )


def draw_outfit(rng: np.random.Generator) -> Outfit:
    """Everyday clothes: shirt or jacket, trousers narrow to wide, now and then a skirt."""
    jacket = rng.random() < 0.55
    loose = rng.uniform(0.0, 1.0) ** 2.5
    skirt = rng.random() < 0.04
    long_hair = rng.random() < 0.18
    cover = rng.random() < 0.05
    return Outfit(
        shirt=float(rng.uniform(0.012, 0.045) if jacket else rng.uniform(0.002, 0.02)),
        sleeves=float(rng.uniform(0.015, 0.045) if jacket else rng.uniform(0.0, 0.018)),
        trousers=float(0.006 + 0.02 * loose),
        legs=float(0.018 + 0.035 * loose * rng.uniform(0.5, 1.2)),
        shoes=float(rng.uniform(0.015, 0.035)),
        heels=float(rng.uniform(0.0, 0.05) if rng.random() < 0.3 else 0.0),
        belly=float(max(0.0, rng.normal(0.0, 0.025))),
        skirt=float(
            rng.uniform(0.25, 1.0) if skirt else (rng.uniform(0.06, 0.22) if jacket else 0.0)
        ),
        skirt_ease=float(rng.uniform(0.01, 0.045)),
        skirt_flare=float(rng.uniform(0.0, 0.5 if skirt else 0.2)),
        collar=float(rng.uniform(0.01, 0.03) if rng.random() < 0.3 else 0.0),
        hair=float(rng.uniform(0.002, 0.022)),
        hair_long=float(rng.uniform(0.05, 0.3) if long_hair else 0.0),
        hood=float(rng.uniform(0.01, 0.03) if cover else 0.0),
        brim=float(rng.uniform(0.0, 0.08) if cover else 0.0),
    )


def draw_coat(rng: np.random.Generator, worn: Outfit) -> Outfit:
    """This person with a coat, a thick jacket or a long skirt over what is worn."""
    kind = rng.choice(["coat", "down jacket", "skirt", "rain cape"], p=[0.45, 0.3, 0.15, 0.1])
    hood = float(rng.uniform(0.02, 0.05) if rng.random() < 0.2 else worn.hood)
    if kind == "skirt":
        return replace(
            worn,
            skirt=float(rng.uniform(0.4, 1.0)),
            skirt_ease=float(rng.uniform(0.02, 0.06)),
            skirt_flare=float(rng.uniform(0.1, 0.7)),
        )
    thick = {"coat": (0.02, 0.05), "down jacket": (0.04, 0.08), "rain cape": (0.03, 0.07)}[kind]
    length = {"coat": (0.35, 1.0), "down jacket": (0.08, 0.3), "rain cape": (0.2, 0.7)}[kind]
    return replace(
        worn,
        shirt=float(rng.uniform(*thick)),
        sleeves=float(rng.uniform(*thick) * 0.8),
        trousers=max(worn.trousers, 0.01),
        skirt=float(rng.uniform(*length)),
        skirt_ease=float(rng.uniform(*thick)),
        skirt_flare=float(rng.uniform(0.0, 0.6 if kind == "rain cape" else 0.35)),
        collar=float(rng.uniform(0.01, 0.05)),
        hood=hood,
    )


def jittered_outfit(worn: Outfit, rng: np.random.Generator) -> Outfit:
    """These clothes, sitting a little differently."""

    def near(value: float) -> float:
        return float(value * np.exp(rng.normal(0.0, 0.12)))

    return replace(
        worn,
        shirt=near(worn.shirt),
        sleeves=near(worn.sleeves),
        trousers=near(worn.trousers),
        legs=near(worn.legs),
        skirt_ease=near(worn.skirt_ease),
        hair=near(worn.hair),
    )


def draw_carried(rng: np.random.Generator) -> Carried:
    """A bag of any kind."""
    kind = rng.choice(
        ["backpack", "shoulder bag", "hand bag", "suitcase", "box"],
        p=[0.32, 0.3, 0.24, 0.08, 0.06],
    )
    side: Side = "left" if rng.random() < 0.5 else "right"
    return Carried(kind, side, float(rng.uniform(0.6, 1.4)), float(rng.uniform(0.6, 1.5)))


def dressed(body: Body, outfit: Outfit, carried: Carried | None) -> Body:
    """Put clothes on a body and things into its hands."""
    weights = body.weights

    def share(*bones: str) -> Floats:
        return np.asarray(weights[:, [BONE[bone] for bone in bones]].sum(axis=1))

    def both(*bones: str) -> Floats:
        return share(*(f"{side}_{bone}" for side in ("left", "right") for bone in bones))

    off = (
        outfit.shirt * share(*_TRUNK)
        + outfit.sleeves * both("arm", "forearm")
        + outfit.trousers * both("thigh")
        + outfit.legs * both("shank")
        + outfit.shoes * both("foot", "toes")
        + outfit.hair * share("head")
        + (outfit.collar - 0.008) * share("neck")
    )
    normals = body.normals
    vertices = body.vertices + off[:, None] * normals
    ahead = np.clip(normals[:, 0], 0.0, 1.0) * share("hips", "waist", "spine", "chest")
    vertices[:, 0] += outfit.belly * ahead
    if outfit.heels:
        heel = both("foot") * (body.vertices[:, 0] < body.joints[BONE["left_foot"], 0] + 0.02)
        vertices[:, 2] -= outfit.heels * heel
    worn = replace_vertices(body, vertices)
    parts = []
    if outfit.skirt:
        parts.append(_tube(worn, outfit))
    parts.extend(_head_cover(worn, outfit))
    parts.extend(_fists(worn))
    parts.extend(_shoulders(worn, outfit))
    if carried is not None:
        parts.extend(_things(worn, carried))
    return worn.with_parts(parts)


def replace_vertices(body: Body, vertices: Floats) -> Body:
    """This body with its surface moved."""
    return Body(vertices, body.faces, body.weights, body.joints)


def _tube(body: Body, outfit: Outfit) -> Part:
    """Cloth around hips and legs, from the waist to the hem; below the hips it follows the legs."""
    hip = body.joints[BONE["left_thigh"], 2]
    top = body.joints[BONE["spine"], 2]
    hem = hip - outfit.skirt * body.leg_length
    knee = body.joints[BONE["left_shank"], 2]
    arms = [index for index, bone in enumerate(BONES) if "arm" in bone or "hand" in bone]
    trunk = body.vertices[body.weights[:, arms].sum(axis=1) < 0.3]
    levels = np.linspace(top, hem, 6)
    angles = np.arange(_RING) * 2 * np.pi / _RING
    rings, weights = [], []
    widest = np.zeros(2)
    for level in levels:
        near = trunk[np.abs(trunk[:, 2] - level) < 0.06]
        low = near[:, :2].min(axis=0) if len(near) else -widest
        high = near[:, :2].max(axis=0) if len(near) else widest
        half = (high - low) / 2
        if level < hip:  # hangs from the widest place, it doesn't cling to the legs
            below = (hip - level) / body.leg_length
            half = np.maximum(half, widest * (1.0 + outfit.skirt_flare * below - 0.12 * below))
        widest = np.maximum(widest, half)
        half = half + outfit.skirt_ease
        middle = (high + low) / 2 * np.array([1.0, 0.0])
        rings.append(
            np.column_stack(
                [
                    middle[0] + half[0] * np.cos(angles),
                    middle[1] + half[1] * np.sin(angles),
                    np.full(_RING, level),
                ]
            )
        )
        follow = 0.85 * np.clip((hip - level) / (0.45 * body.leg_length), 0.0, 1.0)
        left = np.clip(0.5 + 0.9 * np.sin(angles), 0.0, 1.0)
        shank = 0.5 * np.clip((knee - level) / (0.5 * body.leg_length), 0.0, 1.0)
        ring = np.zeros((_RING, COLUMNS))
        above = np.clip((level - hip) / (top - hip), 0.0, 1.0)
        ring[:, BONE["hips"]] = (1.0 - follow) * (1.0 - above)
        ring[:, BONE["waist"]] = (1.0 - follow) * above
        for side, part in (("left", left), ("right", 1.0 - left)):
            ring[:, BONE[f"{side}_thigh"]] = follow * part * (1.0 - shank)
            ring[:, BONE[f"{side}_shank"]] = follow * part * shank
        weights.append(ring)
    return _lofted(np.stack(rings), np.stack(weights))


def _lofted(rings: Floats, weights: Floats) -> Part:
    """A closed surface through rings from top to bottom, each counter-clockwise seen from above."""
    levels, around = rings.shape[:2]
    index = np.arange(levels * around).reshape(levels, around)
    ahead = np.roll(index, -1, axis=1)
    upper, lower = index[:-1].ravel(), index[1:].ravel()
    upper_next, lower_next = ahead[:-1].ravel(), ahead[1:].ravel()
    top, bottom = levels * around, levels * around + 1
    faces = np.concatenate(
        [
            np.column_stack([upper, lower, lower_next]),
            np.column_stack([upper, lower_next, upper_next]),
            np.column_stack([index[0], ahead[0], np.full(around, top)]),
            np.column_stack([ahead[-1], index[-1], np.full(around, bottom)]),
        ]
    )
    ends = np.stack([rings[0].mean(axis=0), rings[-1].mean(axis=0)])
    end_weights = np.stack([weights[0].mean(axis=0), weights[-1].mean(axis=0)])
    return Part(
        np.concatenate([rings.reshape(-1, 3), ends]),
        faces.astype(np.int64),
        np.concatenate([weights.reshape(-1, weights.shape[-1]), end_weights]),
    )


def _rounded(
    centre: Floats, half: tuple[float, float, float], column: int | str, *, square: float = 1.0
) -> Part:
    """An ellipsoid, or with `square` towards 0 a box with round edges, fixed to one bone."""
    levels, around = 5, 10
    tilt = np.linspace(np.pi / 2 - 0.45, -np.pi / 2 + 0.45, levels)[:, None]
    turn = (np.arange(around) * 2 * np.pi / around)[None, :]

    def bent(value: Floats) -> Floats:
        return np.asarray(np.sign(value) * np.abs(value) ** square)

    shape = np.stack(
        [
            bent(np.cos(tilt)) * bent(np.cos(turn)),
            bent(np.cos(tilt)) * bent(np.sin(turn)),
            np.broadcast_to(bent(np.sin(tilt)), (levels, around)),
        ],
        axis=-1,
    )
    weights = np.zeros((levels, around, COLUMNS))
    weights[..., BONE[column] if isinstance(column, str) else column] = 1.0
    part = _lofted(centre + shape * np.array(half), weights)
    part.vertices[-2:, 2] = centre[2] + half[2] * np.array([1.0, -1.0])
    return part


def _head_cover(body: Body, outfit: Outfit) -> list[Part]:
    head = body.vertices[body.weights[:, BONE["head"]] > 0.8]
    low, high = head.min(axis=0), head.max(axis=0)
    middle, half = (low + high) / 2, (high - low) / 2
    parts = []
    if outfit.hair_long:
        centre = np.array([middle[0] - 0.55 * half[0], 0.0, middle[2] - 0.5 * outfit.hair_long])
        size = (
            0.5 * half[0] + outfit.hair,
            0.8 * half[1] + outfit.hair,
            0.75 * half[2] + 0.5 * outfit.hair_long,
        )
        parts.append(_rounded(centre, size, "head"))
    if outfit.hood:
        centre = np.array([middle[0] - 0.15 * half[0], 0.0, middle[2] + 0.12 * half[2]])
        size = (half[0] + outfit.hood, half[1] + outfit.hood, 0.9 * half[2] + outfit.hood)
        parts.append(_rounded(centre, size, "head"))
    if outfit.brim:
        centre = np.array([middle[0] + 0.5 * outfit.brim, 0.0, middle[2] + 0.35 * half[2]])
        parts.append(_rounded(centre, (half[0] + outfit.brim, half[1] + 0.02, 0.015), "head"))
    return parts


def _fists(body: Body) -> list[Part]:
    """Loosely closed hands: decimated fingers are too thin to be seen as what they are."""
    fists = []
    for side in ("left", "right"):
        palm = body.joints[BONE[f"{side}_hand"]] + np.array([0.01, 0.0, -0.055])
        fists.append(_rounded(palm, (0.045, 0.032, 0.062), f"{side}_hand"))
    return fists


def _shoulders(body: Body, outfit: Outfit) -> list[Part]:
    """Round shoulders: skinning lets them sink when the arms of the template are lowered."""
    cloth = 0.5 * (outfit.shirt + outfit.sleeves)
    shoulders = []
    for side, outward in (("left", 1.0), ("right", -1.0)):
        centre = body.joints[BONE[f"{side}_arm"]] + np.array([0.0, outward * 0.02, -0.018])
        half = (0.048 + cloth, 0.042 + cloth, 0.046 + cloth)
        shoulders.append(_rounded(centre, half, f"{side}_arm"))
    return shoulders


def _things(body: Body, carried: Carried) -> list[Part]:
    side = 1.0 if carried.side == "left" else -1.0
    chest = body.joints[BONE["chest"]]
    trunk = body.vertices[body.weights[:, [BONE["chest"], BONE["spine"]]].sum(axis=1) > 0.7]
    back, front = trunk[:, 0].min(), trunk[:, 0].max()
    width = trunk[:, 1].max()
    hand = body.joints[BONE[f"{carried.side}_hand"]]
    size, depth = carried.size, carried.depth
    match carried.kind:
        case "backpack":
            half = (0.085 * depth, 0.14 * size**0.5, 0.2 * size)
            centre = np.array([back - 0.6 * half[0], 0.0, chest[2] + 0.02])
            return [_rounded(centre, half, "chest", square=0.5)]
        case "shoulder bag":
            half = (0.16 * size, 0.05 * depth, 0.13 * size)
            hips = body.joints[BONE["left_thigh"], 2]
            centre = np.array([0.02, side * (width + 0.5 * half[1]), hips + 0.02])
            return [_rounded(centre, half, "hips", square=0.5)]
        case "hand bag":
            half = (0.17 * size, 0.05 * depth, 0.13 * size)
            centre = hand + np.array([0.0, side * 0.02, -0.1 - half[2]])
            return [_rounded(centre, half, CARRIED[carried.side], square=0.4)]
        case "suitcase":
            half = (0.13 * depth, 0.17, 0.28 * size)
            ground = body.vertices[:, 2].min()
            centre = np.array([hand[0] - 0.25 - half[0], hand[1], ground + half[2]])
            handle = (hand + np.array([-0.15, 0.0, -0.2]), (0.13, 0.02, 0.17))
            return [
                _rounded(centre, half, CARRIED[carried.side], square=0.35),
                _rounded(*handle, CARRIED[carried.side]),
            ]
        case "box":
            half = (0.14 * depth, 0.17 * size, 0.12 * size)
            centre = np.array([front + half[0] + 0.04, 0.0, chest[2] - 0.1])
            return [_rounded(centre, half, "spine", square=0.3)]
        case _:
            return []
