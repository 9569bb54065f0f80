"""Packed datasets, importers, sampling and augmentation: from files to a batch on the device.

    pack = pack_dataset(Path("CASIA-B-pkl"), Path("casia-b.pack"))      # once
    pack = Pack.open(Path("casia-b.pack"))                             # instant, memory-mapped
    train = pack.subset(pack.partition.train)
    source = BatchSource(train, subjects=8, sequences=16, clip=OrderedClip(frames=30, skip=10),
                         seed=0, device=torch.device("cuda"))
    for batch in source.iterate(start=step, stop=60_000):              # prefetched, bounded
        views = augment(batch.silhouettes, recipe.augmentation, generator(seed, batch.step))
        output = network(join(views, batch.lengths), batch.lengths)

What is imported from here needs no torch, so that a recipe can be checked without it. What works on
batches is imported from `training.data.batches` (`Batch`, `BatchSource`, `unpack`, `join`) and from
`training.data.augmentation` (`augment`, `plain`, `generator`).

The signatures in short (n sequences, s frames); each has its own docstring:

    Pack.open(path) -> Pack                 PackError when it is none, or half of one
    pack.sequences: tuple[SequenceRecord, ...]
                                            .subject .condition .view .first_frame .frames .metadata
    pack.subjects: tuple[str, ...]          sorted; a label is an index into it
    pack.labels, pack.lengths: int64 [n]    label and number of frames of each sequence
    pack.content_hash: str                  sha256 over frames and records; name it in tables
    pack.partition: Partition | None        .train, .test: tuples of subject ids; .probes, .gallery
    pack.silhouettes(i, frames=None) -> uint8 [s, 64, 64]
    pack.where(predicate), pack.subset(subjects) -> Pack      the same file, fewer sequences
    PackWriter(path, encoding="auto", *, resume=False)
        .add(subject, condition, view, silhouettes, metadata=None, pose_maps=None)
        .finish(partition=None) -> Pack
    pack_dataset(source, out, format="auto", *, encoding="auto", partition=None, silhouettes=None,
                 pose_maps="auto", workers=1, progress=None, left_out=None) -> Pack
    BatchSource(pack, *, subjects, sequences, clip, seed, same_scene=1, rank=0, world_size=1,
                device="cpu", prefetch=2)
        .batch(step) -> Batch               a pure function of the arguments and the step
        .iterate(start=0, stop=None) -> Iterator[Batch]
    Batch(step, silhouettes uint8 [n, s, 64, 64], labels int64 [n], lengths, sequences, subjects,
          conditions, views)
    augment(silhouettes, augmentation, generator) -> float32 [n, s, 64, 44] in [0, 1]
    plain(silhouettes) -> the same without augmentation, for evaluation
    generator(seed, step, rank=0) -> torch.Generator          same arguments, bit-equal views
    join(views, lengths) -> [sum(lengths), h, w], or the views unchanged when lengths is None
"""

from training.data.importers import Progress, pack_dataset
from training.data.options import (
    Augmentation,
    Clip,
    OrderedClip,
    RandomLengthClip,
    UnorderedClip,
)
from training.data.pack import Pack, PackError, PackWriter, Partition, SequenceRecord
from training.data.sampling import SamplingError
from training.data.sources import LeftOut, SourceError

__all__ = [
    "Augmentation",
    "Clip",
    "LeftOut",
    "OrderedClip",
    "Pack",
    "PackError",
    "PackWriter",
    "Partition",
    "Progress",
    "RandomLengthClip",
    "SamplingError",
    "SequenceRecord",
    "SourceError",
    "UnorderedClip",
    "pack_dataset",
]
