"""`vitral predict`: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import Result

from tests.pipelines.brightest import Brightest, painted
from vitral.cli import folder as cli_folder
from vitral.cli.predict import predict
from vitral.cli.show import json_line, plain
from vitral.errors import UsageError
from vitral.models.output import EncoderOutput
from vitral.pipelines.predictor import Predictor, load

Vitral = Callable[..., Result]


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def softmax_by_hand(checkpoint: Path, picture: Path) -> np.ndarray[Any, Any]:
    """The scores without the corridor: Pillow, numpy, the bare model."""
    pixels = np.asarray(Image.open(picture).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR), np.float32)
    batch = torch.from_numpy(pixels / 255 * 2 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        output: EncoderOutput = load(checkpoint).model(batch)
    assert output.logits is not None
    powers = np.exp(output.logits[0].double().numpy())
    return np.asarray(powers / powers.sum())


def test_json_lines_carry_the_scores(vitral: Vitral, checkpoint: Path, pictures: Path) -> None:
    ran = vitral("predict", pictures / "a.png", pictures / "b.jpg", "--model", checkpoint, "--json")
    assert ran.exit_code == 0, ran.output
    assert ran.stderr == ""
    rows = lines_of(ran.stdout)
    assert [row["name"] for row in rows] == [str(pictures / "a.png"), str(pictures / "b.jpg")]
    assert rows[0]["size"] == [40, 50]
    found = {row["index"]: row["score"] for row in rows[0]["classes"]}
    expected = softmax_by_hand(checkpoint, pictures / "a.png")
    assert [found[index] for index in range(3)] == pytest.approx(list(expected), abs=1e-5)
    assert "großer Bär" in ran.stdout


def test_classes_are_called_as_a_file_says(vitral: Vitral, checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    ask = ("predict", pictures / "a.png", "--model", checkpoint, "--json")
    usual = lines_of(vitral(*ask).stdout)[0]["classes"]
    (tmp_path / "names.txt").write_text("\ufeffeins\r\nzwei\r\ndrei \r\n\r\n", encoding="utf-8")
    named = lines_of(vitral(*ask, "--class-names", tmp_path / "names.txt").stdout)[0]["classes"]
    assert [row["label"] for row in named] == [("eins", "zwei", "drei")[row["index"]] for row in usual]
    assert [row["score"] for row in named] == [row["score"] for row in usual]
    for text, sentence in (("eins\nzwei\n", "knows 3 classes, and 2"), ("eins\n\ndrei\n", "none of them empty")):
        (tmp_path / "names.txt").write_text(text)
        assert sentence in vitral(*ask, "--class-names", tmp_path / "names.txt").stderr
    assert "There is no file" in vitral(*ask, "--class-names", tmp_path / "nothing.txt").stderr
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\xfa")
    assert "a name on each line" in vitral(*ask, "--class-names", tmp_path / "names.txt").stderr


def test_a_folder_with_a_broken_picture(vitral: Vitral, checkpoint: Path, pictures: Path) -> None:
    ran = vitral("predict", pictures, "--model", checkpoint, "--json", "--top-k", 1, "--batch-size", 2)
    assert ran.exit_code == 1
    rows = lines_of(ran.stdout)
    assert [Path(row["name"]).name for row in rows] == ["a.png", "b.jpg", "broken.jpg", "a.png"]
    assert ["error" in row for row in rows] == [False, False, True, False]
    assert all(len(row["classes"]) == 1 for row in rows if "classes" in row)
    assert set(rows[2]) == {"name", "error"}
    assert "1 of 4 could not be read" in ran.stderr


def test_names_that_stand_for_nothing_fail_in_their_place(
    vitral: Vitral, checkpoint: Path, tmp_path: Path, pictures: Path
) -> None:
    (tmp_path / "empty").mkdir()
    files = (tmp_path / "empty", tmp_path / "*.webp", pictures / "a.png", tmp_path / "nothing.png")
    ran = vitral("predict", *files, "--model", checkpoint, "--json")
    assert ran.exit_code == 1
    assert ["error" in row for row in lines_of(ran.stdout)] == [True, True, False, True]


def test_a_pattern(vitral: Vitral, checkpoint: Path, pictures: Path) -> None:
    ran = vitral("predict", f"{pictures}/**/a.png", "--model", checkpoint, "--json")
    assert len(lines_of(ran.stdout)) == 2


def test_bars_fit_80_columns_and_failures_go_to_stderr(
    vitral: Vitral, checkpoint: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    monkeypatch.setenv("COLUMNS", "80")
    ran = vitral("predict", "a.png", "broken.jpg", "--model", checkpoint)
    assert ran.exit_code == 1
    head, *rows = ran.stdout.splitlines()
    assert head == "a.png  40 × 50"
    assert len(rows) == 3
    assert {len(row) for row in rows} == {80}
    assert sum(float(row.split()[-1].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.2)
    assert any("…" in row for row in rows)
    assert ran.stderr.startswith("Error: broken.jpg: ")


def test_out_keeps_drawings_and_a_list(vitral: Vitral, checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers"
    ran = vitral("predict", pictures, "--model", checkpoint, "--out", out)
    assert ran.exit_code == 1  # for the broken one
    rows = lines_of((out / "predictions.jsonl").read_text("utf-8"))
    assert [row.get("file") for row in rows] == ["a.png", "b.png", None, "a-2.png"]
    assert sorted(path.name for path in out.iterdir()) == ["a-2.png", "a.png", "b.png", "predictions.jsonl"]
    predictor = load(checkpoint)
    for picture, file in (("a.png", "a.png"), ("more/a.png", "a-2.png")):
        drawn = predictor(pictures / picture).draw()
        np.testing.assert_array_equal(np.asarray(Image.open(out / file)), np.asarray(drawn))


def test_out_keeps_features(vitral: Vitral, encoder: Path, pictures: Path, tmp_path: Path) -> None:
    ran = vitral("predict", pictures / "a.png", "--model", encoder, "--out", tmp_path / "features")
    assert ran.exit_code == 0, ran.output
    assert "2 × 2 patches, tokens 5 × 32, pooled 32 with norm" in ran.stdout
    with np.load(tmp_path / "features" / "a.npz") as kept:
        expected = load(encoder)(pictures / "a.png")
        np.testing.assert_allclose(kept["tokens"], expected.tokens.numpy(), atol=1e-6)
        np.testing.assert_allclose(kept["pooled"], expected.pooled.numpy(), atol=1e-6)
        assert kept["grid"].tolist() == [2, 2]
        assert int(kept["prefix"]) == 1


def test_features_as_json(vitral: Vitral, checkpoint: Path, pictures: Path) -> None:
    ran = vitral("predict", pictures / "a.png", "--model", checkpoint, "--task", "image-feature-extraction", "--json")
    (row,) = lines_of(ran.stdout)
    assert np.asarray(row["tokens"]).shape == (5, 32)


def test_out_must_not_be_where_the_pictures_are(vitral: Vitral, checkpoint: Path, pictures: Path) -> None:
    before = {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()}
    for out in (pictures, pictures / "a.png"):
        ran = vitral("predict", pictures, "--model", checkpoint, "--out", out)
        assert ran.exit_code == 2
        assert ran.stderr.startswith("Error: --out ")
    assert {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["predict", "a.png", "--modle", "x"], 2, "--model"),
        (["predict", "a.png", "--model", "CHECKPOINT", "--topk", "3"], 2, "--top-k"),
        (["predict", "a.png", "--model", "CHECKPOINT", "--top-k", "0"], 2, "--top-k"),
        (["predict", "a.png", "--model", "CHECKPOINT", "--task", "image-clasification"], 2, "'image-classification'"),
        (["predict", "a.png", "--model", "CHECKPOINT", "--device", "gpu"], 2, "'gpu'"),
        (["predict", "a.png", "--model", "CHECKPOINT", "--architecture", "vit_b61"], 2, "'vit_b16'"),
        (["predict", "a.png", "--model", "no such folder"], 1, "no such folder"),
        (["predict", "a.png", "--model", "a.png"], 1, "a.png"),
        (["predict", "", "--model", "CHECKPOINT"], 2, "empty"),
        (["predct", "a.png"], 2, "'predict'"),
        (["--modle"], 2, "--modle"),
        ([], 2, "Commands:"),
    ],
    ids=str,
)
def test_mistakes_end_as_sentences(
    vitral: Vitral,
    checkpoint: Path,
    pictures: Path,
    words: list[str],
    code: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(pictures)
    ran = vitral(*(checkpoint if word == "CHECKPOINT" else word for word in words))
    assert ran.exit_code == code
    assert sentence in ran.stderr
    assert ran.stdout == ""
    assert "Traceback" not in ran.output


def test_what_the_disk_refuses_is_a_sentence(
    vitral: Vitral, checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(cli_folder, "write_whole", full)
    ran = vitral("predict", pictures / "a.png", "--model", checkpoint, "--out", tmp_path / "answers")
    assert ran.exit_code == 1
    assert ran.stderr == f"Error: No space left on device: {tmp_path / 'answers' / 'a.png'}\n"


def test_the_unexpected_is_short_unless_asked(
    vitral: Vitral, checkpoint: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("vitral.cli.predict.load", broken)
    ran = vitral("predict", pictures / "a.png", "--model", checkpoint)
    assert ran.exit_code == 1
    assert ran.stderr.splitlines() == [
        "Unexpected RuntimeError: first line",
        "For the traceback: vitral --debug, then the command as before.",
    ]
    ran = vitral("--debug", "predict", pictures / "a.png", "--model", checkpoint)
    assert isinstance(ran.exception, RuntimeError)


def test_an_interruption_is_a_word(
    vitral: Vitral, checkpoint: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitral.cli.predict.load", interrupted)
    ran = vitral("predict", pictures / "a.png", "--model", checkpoint)
    assert (ran.exit_code, ran.stderr) == (130, "Interrupted.\n")


def test_a_half_written_file_never_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    cli_folder.write_whole(path, b"old")

    def torn(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", torn)
    with pytest.raises(KeyboardInterrupt):
        cli_folder.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["x/a.png", "y/a.jpg", "z/A.png", "a-2.png"], ["a", "a-2", "A-3", "a-2-2"]),
        (["https://example.org/cats/tom.jpg?size=9", "<bytes>", "...", "..", "/", "con:aux?.png"], None),
        (["é è.png", "\udce9.png", "a" * 300 + ".png", ".png"], None),
    ],
)
def test_names_of_files_are_safe_and_unique(tmp_path: Path, names: list[str], stems: list[str] | None) -> None:
    kept = cli_folder.ResultFolder(tmp_path)
    found = [kept._free_stem(name) for name in names]
    assert len({stem.casefold() for stem in found}) == len(names)
    assert stems is None or found == stems
    for stem in found:
        assert 0 < len(stem) <= 90
        assert not set(stem) & set('/\\:*?"<>| ')
        assert not stem.startswith(".")
        (tmp_path / f"{stem}.png").touch()


def test_what_strangers_wrote_cannot_steer_a_terminal() -> None:
    assert plain("a\x1b[2Jb\rc") == "a\ufffd[2Jb\ufffdc"
    assert json.loads(json_line({"name": "\udce9.png"})) == {"name": "\udce9.png"}
    assert json_line({"name": "é"}) == '{"name": "é"}'


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """A detector in place of whatever is asked for."""
    found = Predictor(Brightest())
    monkeypatch.setattr("vitral.cli.predict.load", lambda *_, **__: found)
    return found


def test_objects_are_a_table(vitral: Vitral, detector: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painted(tmp_path)
    monkeypatch.chdir(tmp_path)
    ran = vitral("predict", "2.png", "3.png", "nothing.png", "--model", "x")
    assert ran.exit_code == 1
    head, titles, *rows, other, none = ran.stdout.splitlines()
    assert (head, other) == ("2.png  40 × 60", "3.png  33 × 90")
    assert titles.split() == ["score", "left", "top", "right", "bottom"]
    assert [row.split()[0] for row in rows] == ["light", "light"]
    assert sorted(row.split()[2:] for row in rows) == [["0", "0", "30", "40"], ["30", "0", "60", "40"]]
    assert len({len(row) for row in (titles, *rows)}) == 1
    assert none == "  no object above the threshold"
    assert ran.stderr.startswith("Error: nothing.png")


def test_objects_are_drawn_into_a_folder(vitral: Vitral, detector: Predictor, tmp_path: Path) -> None:
    lamps = painted(tmp_path)
    ran = vitral("predict", *lamps[:2], lamps[0], "--model", "x", "--out", tmp_path / "out", "--json")
    assert ran.exit_code == 0, ran.output
    rows = lines_of((tmp_path / "out" / "predictions.jsonl").read_text("utf-8"))
    assert [row.pop("file") for row in rows] == ["0.png", "1.png", "0-2.png"]
    assert rows == lines_of(ran.stdout)
    assert rows[0]["objects"][0]["box"] == [0, 0, 30, 40]
    drawn = np.asarray(Image.open(tmp_path / "out" / "1.png"))
    np.testing.assert_array_equal(drawn, np.asarray(detector(lamps[1]).draw()))
    assert (drawn != np.asarray(Image.open(lamps[1]))).any()


def test_a_threshold_is_for_detectors(
    detector: Predictor,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lamp = str(painted(tmp_path)[2])
    usual: dict[str, Any] = {"as_json": True, "out": None, "batch_size": 1, "workers": 0}
    counts = []
    for threshold, top_k in ((None, None), (0.3, None), (0.3, 1), (1.0, None)):
        assert predict([lamp], "x", top_k=top_k, threshold=threshold, **usual) == 0
        counts.append(len(lines_of(capsys.readouterr().out)[0]["objects"]))
    assert counts == [2, 3, 1, 0]
    monkeypatch.setattr("vitral.cli.predict.load", load)
    with pytest.raises(UsageError, match="--threshold is for models that find objects"):
        predict([lamp], str(checkpoint), top_k=None, threshold=0.3, **usual)
    assert predict([lamp], str(checkpoint), top_k=None, **usual) == 0
    assert len(lines_of(capsys.readouterr().out)[0]["classes"]) == 3
