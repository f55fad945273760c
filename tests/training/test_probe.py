"""Features, and probes of them, against scikit-learn, brute force and the bare model."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.data.pictures import PictureSet
from vitral.data.splits import read_pictures
from vitral.data.transforms import Preprocessing
from vitral.errors import PictureError, UnknownNameError, UsageError
from vitral.models.catalogue import create_model
from vitral.pipelines.pipeline import pipeline
from vitral.training import features as features_page
from vitral.training.features import features_of
from vitral.training.probe import head_config, knn, linear_probe, with_linear_head

FEATURES = ("pooled", "class_token", "mean_patches", "class_and_mean")


def small(name: str = "vit_ti16", **options: Any) -> Any:
    torch.manual_seed(4)
    sizes = {"width": 32, "heads": 2, "depth": 2, "mlp_width": 64, "image_size": 8, "patch_size": 4, "num_classes": 0}
    return create_model(name, **sizes | options).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return small()


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_page, "SHARD", 10)


def points(count: int = 300, width: int = 6, classes: int = 4, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clouds, of unlike scales and away from zero, with a number that never changes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = np.random.default_rng(0).normal(0, 1.2, (classes, width))
    cloud = (centres[labels] + rng.normal(size=(count, width))) * 10.0 ** np.arange(-2, width - 2) + 3
    return np.hstack([cloud, np.full((count, 1), 0.1)]).astype(np.float32), labels


# Features


@pytest.mark.parametrize("workers", [0, 3])
def test_features_are_the_bare_models_in_order(model: Any, colours: PictureSet, workers: int) -> None:
    seen: list[tuple[int, int]] = []
    kinds = {
        kind: features_of(
            model, colours, feature=kind, batch_size=7, workers=workers, on_progress=lambda *done: seen.append(done)
        )
        for kind in FEATURES
    }
    pixels = torch.stack([model.record.preprocessing(colours.read(index))[0] for index in range(36)])
    with torch.no_grad():
        output = model(pixels)
    tokens = output.tokens.numpy()
    np.testing.assert_allclose(kinds["pooled"], output.pooled, atol=1e-5)
    np.testing.assert_allclose(kinds["class_token"], tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(kinds["mean_patches"], tokens[:, 1:].mean(1), atol=1e-5)
    np.testing.assert_array_equal(kinds["class_and_mean"], np.hstack([kinds["class_token"], kinds["mean_patches"]]))
    assert kinds["pooled"].dtype == np.float32
    assert seen[:6] == [(7, 36), (14, 36), (21, 36), (28, 36), (35, 36), (36, 36)]


def test_inputs_of_several_sizes_keep_their_order(model: Any, colours: PictureSet) -> None:
    """What comes before the crop may differ in size; without a crop, so do the inputs."""

    class Growing(PictureSet):
        def read(self, index: int, **options: Any) -> Any:
            picture = super().read(index, **options)
            side = 8 + 4 * (index % 3)
            return replace(picture, image=picture.image.resize((side, side)), size=(side, side))

    growing = Growing(**{name: getattr(colours, name) for name in ("name", "classes", "labels", "places", "store")})
    free = small()
    free.record = replace(free.record, preprocessing=Preprocessing(resize="none"))
    together = features_of(free, growing, batch_size=9)
    one_by_one = features_of(free, growing, batch_size=1, workers=0)
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)


class Counted(PictureSet):
    """A set that counts what is read of it, and breaks where it is told to."""

    def read(self, index: int, **options: Any) -> Any:
        self.__dict__.setdefault("seen", []).append(index)
        if index == self.__dict__.get("broken"):
            raise KeyboardInterrupt
        return super().read(index, **options)


def counted(pictures: PictureSet, **told: Any) -> Any:
    found = Counted(**{name: getattr(pictures, name) for name in ("name", "classes", "labels", "places", "store")})
    found.__dict__.update(told)
    return found


@pytest.mark.usefixtures("small_shards")
def test_an_interrupted_run_goes_on_where_it_stood(model: Any, colours: PictureSet, tmp_path: Path) -> None:
    whole = features_of(model, colours)
    with pytest.raises(KeyboardInterrupt):
        features_of(model, counted(colours, broken=25), cache=tmp_path, batch_size=4, workers=0)
    assert len(list(tmp_path.iterdir())) == 2
    second, steps = counted(colours), []
    rows = features_of(
        model, second, cache=tmp_path, batch_size=4, workers=0, on_progress=lambda done, _: steps.append(done)
    )
    assert second.seen == list(range(20, 36))
    assert steps[:2] == [10, 20]
    np.testing.assert_allclose(rows, whole, atol=1e-5)
    third = counted(colours)
    again = features_of(model, third, cache=tmp_path)
    assert "seen" not in third.__dict__
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(again, rows)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def test_a_cached_number_that_is_not_finite_is_made_again(model: Any, colours: PictureSet, tmp_path: Path) -> None:
    rows = np.array(features_of(model, colours, cache=tmp_path))
    [file] = tmp_path.iterdir()
    broken = rows.copy()
    broken[7, 3] = math.nan
    np.save(file, broken)
    np.testing.assert_array_equal(features_of(model, colours, cache=tmp_path), rows)
    np.testing.assert_array_equal(np.load(file), rows)


@pytest.mark.usefixtures("small_shards")
def test_a_damaged_file_of_the_cache_is_made_again(model: Any, colours: PictureSet, tmp_path: Path) -> None:
    rows = np.array(features_of(model, colours, cache=tmp_path))
    [file] = tmp_path.iterdir()
    for damage in (b"", b"no array", file.read_bytes()[:500]):
        file.write_bytes(damage)
        np.testing.assert_array_equal(features_of(model, colours, cache=tmp_path), rows)
        assert list(tmp_path.iterdir()) == [file]


def test_the_cache_tells_apart_whatever_features_depend_on(model: Any, colours_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "copy"
    for path in colours_folder.rglob("*.png"):
        (source / path.parent.name).mkdir(parents=True, exist_ok=True)
        (source / path.parent.name / path.name).write_bytes(path.read_bytes())
    pictures = read_pictures(source)
    other = small()
    with torch.no_grad():
        other.patch.projection.bias[0] += 1e-3
    prepared = small()
    prepared.record = replace(prepared.record, preprocessing=Preprocessing(size=(8, 8), interpolation="bicubic"))
    reshaped = small(norm_eps=1e-5)
    cache = tmp_path / "cache"
    for count, (network, feature) in enumerate(
        [(model, "pooled"), (model, "mean_patches"), (other, "pooled"), (prepared, "pooled"), (reshaped, "pooled")], start=1
    ):
        features_of(network, pictures, feature=feature, cache=cache)
        assert len(list(cache.iterdir())) == count
    features_of(model, pictures.subset(range(9)), cache=cache)
    assert len(list(cache.iterdir())) == 6
    first = source / pictures.names[0]
    first.write_bytes((source / pictures.names[-1]).read_bytes())  # another picture under the same name
    os.utime(first, ns=(1, 1))
    found = features_of(model, read_pictures(source), cache=cache)
    np.testing.assert_allclose(found[0], found[-1], atol=1e-5)


def test_a_picture_that_cannot_be_read_is_named_and_nothing_is_kept_in_its_place(
    model: Any, colours_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "b").mkdir()
    (tmp_path / "set" / "a" / "1.png").write_bytes(next(colours_folder.rglob("*.png")).read_bytes())
    (tmp_path / "set" / "b" / "2.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"2\.png"):
        features_of(model, read_pictures(tmp_path / "set"), cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_numbers_that_are_not_finite_are_not_kept(colours: PictureSet, tmp_path: Path) -> None:
    broken = small()
    with torch.no_grad():
        broken.norm.bias[3] = math.nan
    with pytest.raises(UsageError, match="not all finite"):
        features_of(broken, colours, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unchecked")
def test_what_gives_no_features_is_refused(model: Any, colours: PictureSet, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="'class_token'"):
        features_of(model, colours, feature="class_tokn")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="has none"):
        features_of(small(class_token=False, prefix_positions=0, pool="mean"), colours, feature="class_token")
    with pytest.raises(UsageError, match="not one of Vitral's"):
        features_of(torch.nn.Linear(2, 2), colours)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="holds no pictures"):
        features_of(model, colours.subset([]))
    silent = small()
    silent.record = replace(silent.record, preprocessing=None)
    with pytest.raises(UsageError, match="Nobody said how"):
        features_of(silent, colours)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        features_of(model, colours, cache=tmp_path / "file")


# The linear probe


@pytest.mark.parametrize("strength", [1.0, 1e-2, 1e-5])
def test_the_loss_is_scikit_learns(strength: float) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    (x, y), (tx, ty) = points(), points(seed=2)
    probe = linear_probe(x, y, tx, ty, strength=strength)
    constant = x.std(0, dtype=np.float64) < 1e-6
    mean, deviation = x.mean(0, dtype=np.float64), np.where(constant, 1, x.std(0, dtype=np.float64))
    standard = (x - mean) / deviation
    peer = linear.LogisticRegression(C=1 / (strength * len(x)), tol=1e-10, max_iter=10_000).fit(standard, y)

    def loss(weight: np.ndarray, logits: np.ndarray) -> float:
        top = logits.max(1, keepdims=True)
        entropy = np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(y)), y]
        return float(entropy.mean() + strength / 2 * (weight**2).sum())

    theirs = loss(peer.coef_, standard @ peer.coef_.T + peer.intercept_)
    assert loss(probe.weight * deviation, probe.logits(x)) == pytest.approx(theirs, rel=1e-5)
    assert probe.curve == ()
    said = peer.predict((tx - mean) / deviation)
    assert (probe.logits(tx).argmax(1) == said).mean() > 0.99
    assert probe.accuracy == (probe.logits(tx).argmax(1) == ty).mean()
    assert probe.top5 == 1.0


def test_top5_and_accuracy_are_counted_over_all_classes() -> None:
    (x, y), (tx, ty) = points(classes=9, width=3), points(classes=9, width=3, seed=2)
    probe = linear_probe(x, y, tx, ty, strength=0.1)
    order = probe.logits(tx).argsort(1)[:, ::-1]
    assert probe.top5 == pytest.approx(np.mean([label in row[:5] for label, row in zip(ty, order, strict=True)]))
    assert probe.accuracy < probe.top5 < 1


def test_the_strength_is_chosen_on_what_the_fit_did_not_see() -> None:
    rng = np.random.default_rng(3)
    count, width = 120, 60  # few pictures, many numbers, of which two tell something: weak strengths learn by heart
    labels = rng.integers(0, 2, count + 500)
    x = rng.normal(size=(count + 500, width))
    x[:, :2] += 1.2 * labels[:, None]
    told: list[tuple[float, float]] = []
    probe = linear_probe(x[:count], labels[:count], x[count:], labels[count:], on_strength=lambda *one: told.append(one))
    assert tuple(told) == probe.curve
    assert [strength for strength, _ in told] == sorted((strength for strength, _ in told), reverse=True)
    assert dict(told)[probe.strength] == max(accuracy for _, accuracy in told)
    weak = linear_probe(x[:count], labels[:count], x[count:], labels[count:], strength=1e-6)
    assert probe.strength >= 0.01
    assert probe.accuracy > weak.accuracy + 0.05
    again = linear_probe(x[:count], labels[:count], x[count:], labels[count:])
    assert np.array_equal(again.weight, probe.weight)
    assert again.curve == probe.curve


def test_classes_that_the_test_part_alone_has_get_a_row() -> None:
    (x, y), (tx, ty) = points(classes=3), points(classes=3, seed=2)
    ty[0] = 5
    probe = linear_probe(x, y, tx, ty, strength=0.1)
    assert probe.weight.shape == (6, 7)
    assert linear_probe(x, y, tx, ty, strength=0.1, classes=8).bias.shape == (8,)


@pytest.mark.usefixtures("unchecked")
def test_data_that_make_no_probe_are_refused() -> None:
    (x, y), (tx, ty) = points(60), points(20, seed=2)
    spoilt = x.copy()
    spoilt[3, 1] = math.inf
    for wrong, sentence in (
        ((spoilt, y, tx, ty), "not all finite"),
        ((x, y[:-1], tx, ty), "59 labels"),
        ((x, y, tx[:, 1:], ty), "both must be of one model"),
        ((x, np.zeros_like(y), tx, ty), "of one class"),
        ((x, y - 1, tx, ty), "count from 0"),
        ((x[:0], y[:0], tx, ty), "0 features"),
    ):
        for ask in (linear_probe, knn):
            if not (ask is knn and sentence == "of one class"):  # neighbours of one class vote for it
                with pytest.raises(UsageError, match=sentence):
                    ask(*wrong)
    with pytest.raises(
        UsageError, match=r"too few to hold a fifth of each class out. Add pictures; or where you call linear_probe"
    ):
        linear_probe(x[:8], np.arange(8), tx, ty)
    for wrong_strength in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="trength"):
            linear_probe(x, y, tx, ty, strength=wrong_strength)
    with pytest.raises(UsageError, match="from 0 to 2"):
        linear_probe(x, y, tx, ty, classes=3)


# The nearest neighbours


def test_neighbours_are_those_of_brute_force() -> None:
    (x, y), (tx, ty) = points(200), points(50, seed=2)
    unit, asked = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, tx))
    votes = np.zeros((50, 4))
    for row, similarities in enumerate(asked @ unit.T):
        for place in np.argsort(-similarities)[:20]:
            votes[row, y[place]] += math.exp(float(similarities[place]) / 0.07)
    for chunk in (7, 1024):
        found = knn(x, y, tx, ty, chunk=chunk)
        assert np.array_equal(found.predictions, votes.argmax(1))
    assert found.accuracy == (votes.argmax(1) == ty).mean()
    assert (found.k, found.temperature) == (20, 0.07)


@pytest.mark.parametrize("k", [1, 7])
def test_equal_votes_are_scikit_learns(k: int) -> None:
    neighbours = pytest.importorskip("sklearn.neighbors")
    (x, y), (tx, ty) = points(200, classes=2), points(50, classes=2, seed=2)  # two classes, odd k: no ties
    peer = neighbours.KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(x, y)
    assert np.array_equal(knn(x, y, tx, ty, k=k, temperature=None).predictions, peer.predict(tx))


def test_a_low_temperature_is_the_nearest_alone() -> None:
    rng = np.random.default_rng(6)
    (x, y), (tx, ty) = ((rng.normal(size=(count, 8)), rng.integers(0, 4, count)) for count in (200, 50))
    cold = knn(x, y, tx, ty, temperature=1e-4)
    assert np.array_equal(cold.predictions, knn(x, y, tx, ty, k=1).predictions)
    with pytest.raises(UsageError, match="temperature"):
        knn(x, y, tx, ty, temperature=0.0)
    with pytest.raises(UsageError, match="only 200 pictures"):
        knn(x, y, tx, ty, k=201)


# The probe as a head


@pytest.mark.parametrize(
    ("name", "options", "feature"),
    [
        ("vit_ti16", {}, "pooled"),
        ("vit_ti16", {}, "class_and_mean"),
        ("vit_ti16", {"pool": "mean", "pool_norm": True, "representation": 24, "num_classes": 7}, "pooled"),
        ("vit_ti16", {"pool": "mean", "pool_norm": True, "representation": 24, "num_classes": 7}, "mean_patches"),
        ("deit_ti16_distilled", {"num_classes": 7}, "class_token"),
        ("dinov2_s14_registers", {"layer_scale": 0.5}, "mean_patches"),
        ("siglip_b16", {"class_token": True, "prefix_positions": 1}, "pooled"),
        ("siglip_b16", {"class_token": True, "prefix_positions": 1}, "class_token"),
    ],
)
def test_the_head_gives_the_probes_logits_and_survives_saving(
    colours: PictureSet, tmp_path: Path, name: str, options: dict[str, Any], feature: Any
) -> None:
    network = small(name, **options)
    x = features_of(network, colours, feature=feature)
    probe = linear_probe(x, colours.labels, x, colours.labels, strength=0.01)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    fitted: Any = with_linear_head(network, probe, feature=feature, labels=colours.classes)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    loaded: Any = load_model(save_model(fitted, tmp_path / "fitted"))
    pixels = torch.stack([network.record.preprocessing(colours.read(index))[0] for index in range(36)])
    with torch.no_grad():
        logits = loaded(pixels).logits
    np.testing.assert_allclose(logits, probe.logits(x), atol=1e-3, rtol=1e-4)
    assert (logits.argmax(1).numpy() == colours.labels).mean() == probe.accuracy
    assert loaded.record.labels == colours.classes
    [answer] = pipeline("image-classification", model=tmp_path / "fitted", top_k=1)(colours.read(0).image)
    assert answer["label"] == colours.classes[int(logits[0].argmax())]


def test_a_network_that_pools_in_one_way_only_keeps_it(colours: PictureSet) -> None:
    sizes = {"image_size": 8, "width": 16, "heads": 2, "depth": 1, "mlp_width": 16, "num_classes": 5}
    network: Any = create_model("cct_2_3x2_32", **sizes).eval()
    x = features_of(network, colours)
    probe = linear_probe(x, colours.labels, x, colours.labels, strength=0.01)
    fitted: Any = with_linear_head(network, probe)
    pixels = torch.stack([network.record.preprocessing(colours.read(index))[0] for index in range(36)])
    with torch.no_grad():
        np.testing.assert_allclose(fitted(pixels).logits, probe.logits(x), atol=1e-3, rtol=1e-4)
    with pytest.raises(UsageError, match="one way only"):
        with_linear_head(network, probe, feature="mean_patches")


def test_a_probe_of_other_features_is_refused(model: Any, colours: PictureSet) -> None:
    x = features_of(model, colours, feature="class_and_mean")
    probe = linear_probe(x, colours.labels, x, colours.labels, strength=0.01)
    with pytest.raises(UsageError, match="reads 64 numbers, but the model's 'pooled' has 32"):
        with_linear_head(model, probe)
    with pytest.raises(UsageError, match="2 labels came for a probe of 3"):
        with_linear_head(model, probe, feature="class_and_mean", labels=("a", "b"))


def test_features_of_all_blocks_are_what_each_leaves_behind(colours: PictureSet) -> None:
    """Class tokens and means by a loop over the blocks of one's own; of a network of maps, the means of its maps."""
    network = small()
    network.record = replace(network.record, preprocessing=Preprocessing(size=(16, 16)))
    found = features_of(network, colours, feature="blocks")
    inputs = torch.stack([network.record.preprocessing(colours.read(place))[0] for place in range(len(colours))])
    with torch.no_grad():
        tokens, _ = network.embed(inputs)
        expected = []
        for block in network.blocks:
            tokens = block(tokens, None, None)
            expected += [tokens[:, 0], tokens[:, 1:].mean(1)]
    np.testing.assert_allclose(found, torch.cat(expected, 1), atol=1e-5)
    assert not any(block._forward_hooks for block in network.blocks)


def test_no_network_has_a_classifier_that_reads_all_blocks(model: Any) -> None:
    with pytest.raises(UsageError, match="reads all of its blocks"):
        head_config(model.config, "blocks", 3)
