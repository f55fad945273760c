"""What a frozen model makes of a set of pictures: one vector each, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from vitral.base.device import resolve_device
from vitral.base.disk import exchange, staging, write_whole
from vitral.base.numbers import all_finite, whole_number
from vitral.base.processors import default_workers
from vitral.data.archive import Archive
from vitral.data.pictures import PictureSet
from vitral.data.transforms import Preprocessing
from vitral.errors import UnknownNameError, UsageError
from vitral.models.network import Network
from vitral.models.output import EncoderOutput

__all__ = ["SHARD", "Feature", "features_of", "read_feature"]

Feature = Literal["pooled", "class_token", "mean_patches", "class_and_mean", "blocks"]
"""Which vector of a picture: what the model's own classifier reads, the class token, the mean of the patches, or both
of these side by side, as DINOv2's probes read them (Oquab et al. 2023); or the class token (where there is one) and the mean
of the patches behind every block, all side by side. Probes of a few late blocks are usual (Caron et al. 2021, appendix F);
the early ones tell of colours and textures, which counts where pictures are unlike those the model was trained on."""

SHARD = 2048
"""Pictures to a file while features are being computed: as much is lost, at most, when that is interrupted."""

_VERSION = 2  # of the way in which features are computed; another one makes old files of the cache strangers


def features_of(
    model: Network,
    pictures: PictureSet,
    *,
    feature: Feature = "pooled",
    cache: str | Path | None = None,
    batch_size: int = 64,
    device: str | int | torch.device | None = None,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Float32[np.ndarray, "n d"]:
    """One vector for every picture, in the order of the set.

    With a cache, what is computed is written there in files of `SHARD` pictures, each whole or not at all, so that a run
    that was interrupted goes on where it stood; when all are there they become one file, which is read from disk as it
    is needed (a memory map). The file's name is a hash of everything the features depend on: the weights, the
    configuration, the preprocessing, the kind of feature, and the pictures' names and contents (of pictures on disk, of
    their sizes and times of change). Files of the cache may be deleted at any time.

    Args:
        model: left on `device`, in evaluation mode.
        pictures: the set.
        feature: which vector.
        cache: a folder, made if it is not there; None keeps nothing.
        batch_size: pictures the model sees at once.
        device: see `base.device.resolve_device`.
        workers: threads that read; as many as there are processors, up to 8, unless told. 0 reads in between.
        on_progress: called with the number of pictures done, those found in the cache included, and the number of all.

    Raises:
        PictureError: a picture cannot be read; no other takes its place.
        UsageError: an empty set, a model that has no such feature or no preprocessing, or features that are not finite.
        OSError: the cache cannot be written to.
    """
    _check(model, pictures, feature)
    count, batch_size = len(pictures), whole_number("batch_size", batch_size)
    threads = default_workers() if workers is None else whole_number("workers", workers, least=0)
    told = on_progress or (lambda done, of: None)
    kept = None if cache is None else _Cache(Path(cache).expanduser(), _key(model, pictures, feature), count)
    if kept is not None and (whole := kept.whole()) is not None:
        told(count, count)
        return whole
    model.eval().to(where := resolve_device(device))
    shards = []
    for start in range(0, count, SHARD):
        indices = range(start, min(start + SHARD, count))
        rows = None if kept is None else kept.shard(indices)
        if rows is None:
            parts: list[np.ndarray] = []
            for batch, pixels in _prepared(model, pictures, indices, batch_size, threads):
                parts.append(_vectors(model, pixels, feature, where))
                all_finite("features", parts[-1])
                told(batch.stop, count)
            rows = np.concatenate(parts)
            if kept is not None:
                kept.keep(indices, rows)
        told(indices.stop, count)
        shards.append(rows)
    return np.concatenate(shards) if kept is None else kept.merge(shards)


def read_feature(output: EncoderOutput, feature: Feature) -> Float[Tensor, "b e"]:
    """One vector per picture out of a model's output; what blocks leave behind is not in it."""
    if feature == "pooled":
        return output.pooled
    mean = output.tokens[:, output.prefix :].mean(1)
    if feature == "mean_patches":
        return mean
    return output.tokens[:, 0] if feature == "class_token" else torch.cat([output.tokens[:, 0], mean], dim=1)


def _read_blocks(model: Network, pixels: Float[Tensor, "b c y x"]) -> Float[Tensor, "b e"]:
    """The class token and the mean of the patches behind every block; of blocks that make maps, the mean of all cells."""
    config, found = model.config, cast(list[Tensor], [])
    rows, columns = config.grid_of((pixels.shape[2], pixels.shape[3]))

    def keep(_: nn.Module, __: tuple[Any, ...], stream: Tensor) -> None:
        if stream.ndim == 4:
            found.append(stream.mean((2, 3)))
            return
        # Some networks put the class token before the tokens of their last blocks alone.
        prefix = config.prefix if stream.shape[1] == config.prefix + rows * columns else 0
        if "class" in config.prefix_names[:prefix]:
            found.append(stream[:, 0])
        found.append(stream[:, prefix:].mean(1))

    watched = [block.register_forward_hook(keep) for block in model.blocks]
    try:
        model(pixels)
    finally:
        for one in watched:
            one.remove()
    return torch.cat(found, dim=1)


def _check(model: Network, pictures: PictureSet, feature: Feature) -> None:
    """Refuse what has no such vectors."""
    if feature not in get_args(Feature):
        raise UnknownNameError("feature", feature, get_args(Feature))
    if not isinstance(model, Network):
        raise UsageError(
            f"A {type(model).__name__} is not one of Vitral's models; build it with create_model or load_model."
        )
    if feature in ("class_token", "class_and_mean") and "class" not in model.config.prefix_names:
        raise UsageError(f"{feature!r} reads the class token, and this model has none. Use 'pooled' or 'mean_patches'.")
    if model.record.preprocessing is None:
        raise UsageError("Nobody said how pictures are prepared for this model. Set the preprocessing of its record.")
    if len(pictures) == 0:
        raise UsageError(f"{pictures.name} holds no pictures to take features of.")


@torch.no_grad()
def _vectors(
    model: Network, pixels: Sequence[Float[Tensor, "c _ _"]], feature: Feature, device: torch.device
) -> Float32[np.ndarray, "b d"]:
    """The vectors of some inputs, in their order; those of one size are computed together."""
    groups: dict[torch.Size, list[int]] = defaultdict(list)
    for place, one in enumerate(pixels):
        groups[one.shape].append(place)
    rows: dict[int, Tensor] = {}
    for places in groups.values():
        inputs = torch.stack([pixels[place] for place in places]).to(device)
        vectors = _read_blocks(model, inputs) if feature == "blocks" else read_feature(model(inputs), feature)
        rows.update(zip(places, vectors.float().cpu(), strict=True))
    return torch.stack([rows[place] for place in range(len(pixels))]).numpy()


def _prepared(
    model: Network, pictures: PictureSet, indices: range, batch_size: int, threads: int
) -> Iterator[tuple[range, list[Float[Tensor, "c _ _"]]]]:
    """The inputs of batch after batch; the next one is read by threads while the model is busy with this one."""
    batches = [indices[cut : cut + batch_size] for cut in range(0, len(indices), batch_size)]
    prepare = cast(Preprocessing, model.record.preprocessing)

    def read(index: int) -> Tensor:
        return prepare(pictures.read(index))[0]

    if threads == 0:
        yield from ((batch, list(map(read, batch))) for batch in batches)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="vitral-read") as pool:
        try:
            coming = pool.map(read, batches[0])
            for batch, following in zip(batches, [*batches[1:], range(0)], strict=True):
                present, coming = coming, pool.map(read, following)
                yield batch, list(present)
        finally:
            pool.shutdown(cancel_futures=True)


# -- on disk ----------------------------------------------------------------------------------------------------------


def _key(model: Network, pictures: PictureSet, feature: Feature) -> str:
    """A hash of everything that features depend on."""
    told = (
        _VERSION,
        type(model).__name__,
        model.config,
        model.record.preprocessing,
        pictures.fingerprint,
        feature,
    )
    digest = hashlib.sha256(repr(told).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for stamp in _stamps(pictures):
        digest.update(stamp)
    return digest.hexdigest()[:32]


def _stamps(pictures: PictureSet) -> Iterator[bytes]:
    """What changes when a picture does, as far as it can be had without reading a disk full of them.

    The fingerprint of a set knows names alone, and another folder may use the same.
    """
    if isinstance(pictures.store, Archive):
        yield repr(pictures.store.stamp).encode()
        return
    for place in pictures.places.tolist():
        source = pictures.store.source(place)
        if isinstance(source, Path):
            with suppress(OSError):  # a missing one is refused when it is read
                status = source.stat()
                yield f"{status.st_size} {status.st_mtime_ns}".encode()
        else:
            yield source if isinstance(source, bytes) else np.asarray(source).tobytes()


class _Cache:
    """The files of one set of features: `<key>.npy`, and until that is whole `<key>-<first picture>.npy` for each shard."""

    def __init__(self, folder: Path, key: str, count: int) -> None:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"The cache {folder} is a file; give a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name, self.key, self.count = folder, f"{key}.npy", key, count

    def whole(self) -> Float32[np.ndarray, "n d"] | None:
        """All features, if they are there."""
        return _loaded(self.folder / self.name, self.count)

    def shard(self, indices: range) -> Float32[np.ndarray, "m d"] | None:
        """Those of some pictures, if they are there."""
        return _loaded(self._shard(indices.start), len(indices))

    def keep(self, indices: range, rows: Float32[np.ndarray, "m d"]) -> None:
        """Write those of some pictures."""
        memory = io.BytesIO()
        np.save(memory, rows)
        write_whole(self._shard(indices.start), memory.getvalue())

    def merge(self, shards: Sequence[Float32[np.ndarray, "_ d"]]) -> Float32[np.ndarray, "n d"]:
        """One file out of the shards', which are then deleted."""
        with staging(self.folder) as room:
            shape = (self.count, shards[0].shape[1])
            whole = np.lib.format.open_memmap(room / self.name, mode="w+", dtype=np.float32, shape=shape)
            np.concatenate(shards, out=whole)
            whole.flush()
            exchange(room, [self.name])
        for start in range(0, self.count, SHARD):
            with suppress(OSError):  # a file that is still open elsewhere may stay: it does no harm
                self._shard(start).unlink()
        return cast(np.ndarray, np.load(self.folder / self.name, mmap_mode="r"))

    def _shard(self, start: int) -> Path:
        return self.folder / f"{self.key}-{start:08}.npy"


def _loaded(path: Path, count: int) -> Float32[np.ndarray, "n d"] | None:
    """A file's rows, as a memory map; None where there is none, or none that can be used."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(rows, np.ndarray) and rows.dtype == np.float32 and rows.ndim == 2 and len(rows) == count
    # None that is not finite was ever written; the least and the greatest are NaN where any is.
    return rows if fits and rows.size and bool(np.isfinite([rows.min(), rows.max()]).all()) else None
