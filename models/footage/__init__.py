"""Footage: from a clip to the silhouettes of each walk of everybody in it.

pictures                   bytes → pictures with times (hostile input)
weights                    the networks, fetched and converted at installation
segmentation               who is in a picture, and which pixels are theirs
tracking                   who is who from picture to picture
background                 what a still camera sees without people
walks                      tracks → walks
finding                    all of it, in memory that a clip's length has no part in
"""

from models.footage.finding import WalkFinder
from models.footage.pictures import FootageLimits, Picture, read_pictures
from models.footage.segmentation import (
    BackgroundSegmenter,
    MaskSegmenter,
    NetworkSegmenter,
    Segmenter,
)
from models.footage.walks import FoundWalk, Outcome
from models.footage.weights import MissingWeights

__all__ = [
    "BackgroundSegmenter",
    "FootageLimits",
    "FoundWalk",
    "MaskSegmenter",
    "MissingWeights",
    "NetworkSegmenter",
    "Outcome",
    "Picture",
    "Segmenter",
    "WalkFinder",
    "read_pictures",
]
