from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdistill.api import use
from segdistill.deploy import stages as module
from segdistill.deploy import tables
from segdistill.deploy.artefact import save_student
from segdistill.deploy.predict import predict_files
from segdistill.deploy.predicted import PREDICTED, Made
from segdistill.deploy.predictor import Prediction, open_predictor
from segdistill.deploy.routing import Route
from segdistill.deploy.stages import Extras
from segdistill.types import UserError


@pytest.fixture
def images(tmp_path: Path, image) -> Path:
    root = tmp_path / "Bilder ä"
    (root / "sub").mkdir(parents=True)
    for seed, (name, shape) in enumerate({"a.png": (40, 61), "b.png": (70, 33), "sub/a.png": (32, 48)}.items()):
        Image.fromarray(image(*shape, seed)).save(root / name)
    return root


def areas(out: Path) -> list[dict[str, str]]:
    with (out / "areas.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def files(out: Path) -> dict[str, bytes]:
    """But for predicted.jsonl, which says how it came to them."""
    found = {f.relative_to(out).as_posix(): f.read_bytes() for f in out.rglob("*") if f.is_file()}
    found.pop(PREDICTED, None)
    return found


def test_masks_areas_probabilities_and_overlays(folder, images, tmp_path):
    predictor, seen = open_predictor(folder), []
    out = tmp_path / "out"
    summary = predict_files(
        predictor, [images], out, Extras(probabilities=True, overlays=True), on_progress=lambda *step: seen.append(step)
    )
    assert summary == (3, 0, [], [])
    assert [(done, total) for done, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    stems = ("a", "b", "sub/a")
    assert set(files(out)) == {f"{s}{e}" for s in stems for e in (".png", "_prob.npz", "_overlay.png")} | {"areas.csv"}
    rows = areas(out)
    assert [(row["image"], row["class"]) for row in rows] == [(s, c) for s in stems for c in ("background", "polyp")]
    for stem in stems:
        source = np.asarray(Image.open(images / f"{stem}.png"))
        expected = predictor.predict(source)
        mask = Image.open(out / f"{stem}.png")
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), expected.labels)
        assert tuple(mask.getpalette()[3:6]) == predictor.card.colours[1]
        with np.load(out / f"{stem}_prob.npz", allow_pickle=False) as stored:
            assert stored["probabilities"].dtype == np.float16
            np.testing.assert_allclose(stored["probabilities"], expected.probabilities, atol=1e-3)
        overlay = np.asarray(Image.open(out / f"{stem}_overlay.png"))
        assert overlay.shape == source.shape
        assert (overlay != source).any()
        (row,) = [row for row in rows if row["image"] == stem and row["class"] == "polyp"]
        assert int(row["pixels"]) == expected.labels.sum() > 0
        assert float(row["fraction"]) == pytest.approx(expected.labels.mean(), abs=1e-6)


def test_a_second_run_skips_what_is_there_and_keeps_the_table(folder, images, tmp_path, monkeypatch):
    predictor, out = open_predictor(folder), tmp_path / "out"
    predict_files(predictor, [images], out)
    first = files(out)
    (out / "b.png").unlink()
    (out / "areas.csv").unlink()
    assert predict_files(predictor, [images], out) == (1, 2, [], [])
    assert files(out) == first
    assert predict_files(predictor, [images], out, Extras(overlays=True)) == (
        3,
        0,
        [],
        [],
    )  # an asked-for file was missing
    assert predict_files(predictor, [images], out, overwrite=True) == (3, 0, [], [])
    monkeypatch.setattr(predictor, "predict", None)
    assert predict_files(predictor, [images], out, Extras(overlays=True)) == (0, 3, [], [])


def test_an_interrupted_run_leaves_whole_files_and_resumes(folder, images, tmp_path, monkeypatch):
    predictor, out = open_predictor(folder), tmp_path / "out"
    predict_files(predictor, [images], tmp_path / "reference")
    write = module.write_slices

    def interrupted(path, *result):
        if path.name == "b.png":
            raise KeyboardInterrupt
        write(path, *result)

    monkeypatch.setattr(module, "write_slices", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor, [images], out, Extras(probabilities=True))
    monkeypatch.undo()
    assert set(files(out)) == {"a.png", "a_prob.npz", "b_prob.npz"}
    assert predict_files(predictor, [images], out) == (2, 1, [], [])
    assert {k: v for k, v in files(out).items() if "_prob" not in k} == files(tmp_path / "reference")


@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_several_at_once_give_the_same_files(kind, folder, images, tmp_path, monkeypatch):
    """Two of the three images are in the predictor at once, or the barrier breaks."""
    path = exported(folder, tmp_path / f"student.{kind}")
    predict_files(open_predictor(path, threads=2), [images], tmp_path / "reference")
    predictor = open_predictor(path, threads=2, images=3)
    meeting, predict, lock, seen = threading.Barrier(2), predictor.predict, threading.Lock(), []

    def predicting(image, modality=None):
        with lock:
            seen.append(image.shape)
            first = len(seen) <= 2
        if first:
            meeting.wait(30)
        return predict(image, modality)

    monkeypatch.setattr(predictor, "predict", predicting)
    assert predict_files(predictor, [images], tmp_path / "out") == (3, 0, [], [])
    assert files(tmp_path / "out") == files(tmp_path / "reference")


def test_a_folder_of_one_image_gets_all_cores(folder, images, tmp_path, monkeypatch):
    file, opened = exported(folder, tmp_path / "student.onnx"), []

    def opening(*given, **how):
        opened.append(open_predictor(*given, **how))
        return opened[-1]

    monkeypatch.setattr(use, "open_predictor", opening)
    for name, found in (("one", images / "sub"), ("three", images)):
        assert use.predict(file, [found], tmp_path / name, threads=2).written == {"one": 1, "three": 3}[name]
    assert [(one.workers, one.threads) for one in opened] == [(1, 2), (2, 1)]


def exported(folder, out):
    """An .onnx or .xml file."""
    from segdistill.deploy.export import export_onnx
    from segdistill.deploy.low_precision import metadata
    from segdistill.deploy.openvino_file import write_openvino

    graph = out.with_suffix(".onnx")
    export_onnx(folder, graph)
    if out.suffix == ".xml":
        write_openvino(graph, out, metadata(graph), half=False)
    return out


@pytest.mark.parametrize("stage", ["read_slices", "write_slices", "predict_slices"])
def test_a_fault_in_any_stage_is_not_lost(folder, images, tmp_path, monkeypatch, stage):
    def broken(*given, **more):
        raise ZeroDivisionError(stage)

    monkeypatch.setattr(module, stage, broken)
    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError, match=stage):
        predict_files(open_predictor(folder), [images], tmp_path / "out")
    assert threading.active_count() == threads
    assert not (tmp_path / "out" / "areas.csv").exists()


def test_broken_images_are_reported_and_the_others_predicted(folder, images, tmp_path):
    (images / "broken.jpg").write_bytes((images / "a.png").read_bytes()[:300])
    (images / "empty.png").touch()
    out = tmp_path / "out"
    summary = predict_files(open_predictor(folder), [images], out)
    assert (summary.written, summary.skipped) == (3, 0)
    assert [path.name for path, _ in summary.failed] == ["broken.jpg", "empty.png"]
    assert all("\n" not in message for _, message in summary.failed)
    assert len(areas(out)) == 6
    only = predict_files(open_predictor(folder), [images / "empty.png"], tmp_path / "none")
    assert (only.written, len(only.failed)) == (0, 1)
    assert areas(tmp_path / "none") == []


def test_an_image_that_memory_does_not_hold_is_reported_and_the_others_predicted(folder, images, tmp_path, monkeypatch):
    predictor, said = open_predictor(folder), "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."
    forward = predictor.student.forward

    def short(image, modality=None):
        if image.shape == (70, 33, 3):
            raise RuntimeError(said + "\nat line 1")
        return forward(image)

    monkeypatch.setattr(predictor.student, "forward", short)
    ((path, message),) = predict_files(predictor, [images], tmp_path / "out").failed
    assert (path.name, len(areas(tmp_path / "out"))) == ("b.png", 4)
    assert f"b.png: micro cannot predict an image of 33x70 ({said} at line 1); predict it in tiles" in message


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such names")
def test_names_move_no_cursor(folder, images, tmp_path, monkeypatch, capsys):
    """Of an image that fails in the network, and of one whose modality is unsure."""
    (images / "b.png").rename(images / "b\x1b[2J\nc.png")
    predictor = open_predictor(folder)
    monkeypatch.setattr(predictor.student, "forward", None)
    failed = predict_files(predictor, [images], tmp_path / "out").failed
    assert all(message.isprintable() for _, message in failed)
    assert "b\\x1b[2J\\nc.png" in failed[1][1]
    use._warn_of_unsure([Route("b\x1b[2J\nc", "da\x1brk", 0.5)], tmp_path)
    said = capsys.readouterr().out
    assert "b\\x1b[2J\\nc was predicted as da\\x1brk" in said
    assert said.replace("\n", "").isprintable()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf_8_is_reported_and_the_others_predicted(folder, images, tmp_path):
    os.rename(images / "b.png", os.fsencode(images) + b"/b\xff.png")
    summary = predict_files(open_predictor(folder), [images], tmp_path / "out")
    ((_, message),) = summary.failed
    assert message.endswith("b\\udcff.png: its name is not valid text; rename it")
    assert [row["image"] for row in areas(tmp_path / "out")] == ["a", "a", "sub/a", "sub/a"]
    assert set(files(tmp_path / "out")) == {"a.png", "sub/a.png", "areas.csv"}


def test_output_inside_the_input_is_not_predicted_again(folder, images):
    predictor = open_predictor(folder)
    for expected in ((3, 0, [], []), (0, 3, [], []), (0, 3, [], [])):
        assert predict_files(predictor, [images], images / "pred", Extras(overlays=True)) == expected
    assert set(files(images / "pred")) == {f"{s}{e}" for s in ("a", "b", "sub/a") for e in (".png", "_overlay.png")} | {
        "areas.csv"
    }


def test_an_image_is_never_replaced_by_its_mask(folder, images):
    before = files(images)
    with pytest.raises(UserError, match="lies in the output folder"):
        predict_files(open_predictor(folder), [images], images, overwrite=True)
    with pytest.raises(UserError, match="would replace the image"):
        predict_files(open_predictor(folder), [images / "a.png"], images, overwrite=True)
    sub = images / "sub"
    with pytest.raises(UserError, match="would replace the image"):
        predict_files(open_predictor(folder), [images / "b.png", sub / "a.png"], sub, overwrite=True)
    assert files(images) == before


def test_an_earlier_mask_of_another_student_is_reported(folder, images, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    Image.fromarray(np.full((40, 61), 7, np.uint8)).save(out / "a.png")
    summary = predict_files(open_predictor(folder), [images], out)
    assert (summary.written, summary.skipped) == (2, 0)
    ((path, message),) = summary.failed
    assert path.name == "a.png"
    assert "not from this student" in message
    assert predict_files(open_predictor(folder), [images], out, overwrite=True) == (3, 0, [], [])


def test_an_output_that_cannot_be_written_stops_with_one_line(folder, images, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot write .*; choose another folder"):
        predict_files(open_predictor(folder), [images], tmp_path / "file")


@pytest.fixture
def other(tmp_path, card, network) -> Path:
    """A student that finds the opposite."""
    turned = network(card())
    turned.head.weight.data *= -1
    turned.head.bias.data *= -1
    save_student(tmp_path / "other", turned, card())
    return tmp_path / "other"


def test_what_is_kept_is_of_this_image_student_and_way(folder, other, images, tmp_path, image):
    """Each change alone predicts again, into the same folder."""
    predictor, out = open_predictor(folder), tmp_path / "out"
    one = images / "a.png"
    assert predict_files(predictor, [one], out)[:2] == (1, 0)
    assert predict_files(predictor, [images / "sub" / "a.png"], out)[:2] == (1, 0)  # another file
    assert predict_files(predictor, [one], out)[:2] == (1, 0)
    Image.fromarray(image(40, 61, 5)).save(one)  # other content
    assert predict_files(predictor, [one], out)[:2] == (1, 0)
    assert predict_files(predictor, [one], out, Extras(tile=True))[:2] == (1, 0)
    assert predict_files(predictor, [one], out)[:2] == (1, 0)
    before = files(out)
    assert predict_files(predictor, [one], out)[:2] == (0, 1)
    assert predict_files(open_predictor(other), [one], out)[:2] == (1, 0)
    assert files(out)["areas.csv"] != before["areas.csv"]
    assert predict_files(predictor, [one], out)[:2] == (1, 0)
    assert files(out) == before


def test_what_lies_beside_a_mask_is_of_its_student_too(folder, other, images, tmp_path):
    out, asked = tmp_path / "out", Extras(overlays=True)
    predict_files(open_predictor(other), [images], out, asked)
    predict_files(open_predictor(folder), [images], out)
    assert predict_files(open_predictor(folder), [images], out, asked)[:2] == (3, 0)
    predict_files(open_predictor(folder), [images], tmp_path / "new", asked)
    assert files(out) == files(tmp_path / "new")


def test_a_mask_of_unknown_origin_is_never_replaced_by_another(folder, other, images, tmp_path):
    """As of an earlier version, or somebody's own: what the student finds too is kept from then on."""
    out = tmp_path / "out"
    predict_files(open_predictor(folder), [images], out)
    (out / PREDICTED).write_bytes(b"")
    before = files(predict_into(other, images, tmp_path / "theirs"))
    shutil.copy(tmp_path / "theirs" / "b.png", out / "b.png")
    for written, skipped in ((2, 0), (0, 2)):
        summary = predict_files(open_predictor(folder), [images], out)
        assert (summary.written, summary.skipped) == (written, skipped)
        ((path, message),) = summary.failed
        assert path.name == "b.png"
        assert "is not this student's mask of" in message
        assert (out / "b.png").read_bytes() == before["b.png"]
    assert predict_files(open_predictor(folder), [images], out, overwrite=True)[:2] == (3, 0)


@pytest.mark.parametrize("asked", [Extras(), Extras(overlays=True), Extras(tile=True)], ids=["same", "more", "other"])
def test_a_mask_that_was_corrected_by_hand_is_kept_and_named(folder, images, tmp_path, asked):
    """Whatever the next run is asked; also by one that was stopped after it had begun."""
    out = predict_into(folder, images, tmp_path / "out")
    corrected = 1 - np.asarray(Image.open(out / "b.png"))
    Image.fromarray(corrected).save(out / "b.png")

    def dying(done, total, path):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(open_predictor(folder), [images], out, asked, on_progress=dying)
    for _ in range(2):
        ((path, message),) = predict_files(open_predictor(folder), [images], out, asked).failed
        assert path.name == "b.png"
        assert message.endswith("another output folder (it was changed since it was predicted, and is kept)")
        np.testing.assert_array_equal(np.asarray(Image.open(out / "b.png")), corrected)
    assert predict_files(open_predictor(folder), [images], out, asked, overwrite=True).failed == []


def test_a_mask_that_is_corrected_after_a_run_was_stopped_is_kept(folder, images, tmp_path):
    """It was about to be replaced, but was not."""
    out = predict_into(folder, images, tmp_path / "out")
    lines = (out / PREDICTED).read_bytes().splitlines(keepends=True)

    def dying(done, total, path):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(open_predictor(folder), [images], out, Extras(tile=True), on_progress=dying)
    corrected = 1 - np.asarray(Image.open(out / "b.png"))
    Image.fromarray(corrected).save(out / "b.png")
    (message,) = (text for _, text in predict_files(open_predictor(folder), [images], out, Extras(tile=True)).failed)
    assert "and is kept" in message
    assert len(lines) < len((out / PREDICTED).read_bytes().splitlines())
    np.testing.assert_array_equal(np.asarray(Image.open(out / "b.png")), corrected)


def test_a_mask_that_was_touched_is_this_student_s_all_the_same(folder, images, tmp_path):
    out = predict_into(folder, images, tmp_path / "out")
    os.utime(out / "b.png", ns=(1, 1))
    assert predict_files(open_predictor(folder), [images], out) == (1, 2, [], [])
    assert predict_files(open_predictor(folder), [images], out) == (0, 3, [], [])


def test_lines_of_an_earlier_version_do_not_say_what_was_written(folder, other, images, tmp_path):
    out = predict_into(folder, images, tmp_path / "out")
    lines = [json.loads(line) for line in (out / PREDICTED).read_text(encoding="utf-8").splitlines()]
    old = [{key: line[key] for key in Made._fields[:7]} for line in lines if "mask" in line]
    (out / PREDICTED).write_text("".join(json.dumps(line) + "\n" for line in old), encoding="utf-8")
    assert predict_files(open_predictor(folder), [images], out) == (0, 3, [], [])
    assert predict_files(open_predictor(other), [images], out) == (3, 0, [], [])


def predict_into(student, images, out):
    assert predict_files(open_predictor(student), [images], out)[:2] == (3, 0)
    return out


def test_a_mask_that_a_killed_run_began_is_its_own(folder, other, images, tmp_path):
    """Killed between a mask and its last line, of which half is there."""
    out = predict_into(other, images, tmp_path / "out")
    lines = (out / PREDICTED).read_bytes().splitlines(keepends=True)
    begun = [line for line in lines if json.loads(line)["state"] == "begun"]
    assert len(begun) == 3
    (out / PREDICTED).write_bytes(b"".join(begun) + b"[1]\n\xff{\n" + lines[-2][:-40])
    assert predict_files(open_predictor(folder), [images], out) == (3, 0, [], [])
    assert files(out) == files(predict_into(folder, images, tmp_path / "whole"))
    assert predict_files(open_predictor(folder), [images], out) == (0, 3, [], [])


def test_the_table_names_the_masks_of_earlier_calls_too(folder, other, images, tmp_path):
    """Of those that are there as this student wrote them; as one call would have sorted them."""
    predictor, out = open_predictor(folder), tmp_path / "out"
    Image.open(images / "a.png").save(images / "a-1.png")  # "a-1.png" < "a.png", but "a" < "a-1"
    one, two, three = images / "a-1.png", images / "a.png", images / "b.png"
    predict_files(predictor, [one, two, three], tmp_path / "whole")
    for given in ([one, three], [two], [one]):
        predict_files(predictor, given, out)
    assert files(out) == files(tmp_path / "whole")
    predict_files(open_predictor(other), [one], out)
    assert [row["image"] for row in areas(out)] == ["a-1"] * 2
    (out / "b.png").unlink()
    predict_files(predictor, [images / "sub"], out)  # replaces a.png, as of another file
    assert [(row["image"], row["source"]) for row in areas(out)] == [("a", str(images / "sub" / "a.png"))] * 2
    predict_files(predictor, [one], out, overwrite=True)
    Image.fromarray(1 - np.asarray(Image.open(out / "a.png"))).save(out / "a.png")  # by hand
    predict_files(predictor, [three], out)
    assert [row["image"] for row in areas(out)] == ["a-1", "a-1", "b", "b"]


def test_the_table_says_of_which_file_each_line_is(folder, images, tmp_path):
    """Also where results of equal names were numbered."""
    predict_files(open_predictor(folder), [images / "a.png", images / "sub" / "a.png"], tmp_path / "out")
    for row in areas(tmp_path / "out"):
        pixels = np.asarray(Image.open(row["source"])).shape
        assert np.asarray(Image.open(tmp_path / "out" / f"{row['image']}.png")).shape == pixels[:2]
    assert list(areas(tmp_path / "out")[0])[:5] == ["image", "class", "pixels", "fraction", "mm2_or_mm3"]


def test_runs_that_end_at_once_lose_no_line_of_each_other(folder, images, tmp_path, monkeypatch):
    """The second one ends while the first one, which does not know of its mask yet, writes the table."""
    out, write, started = tmp_path / "out", tables._write, []

    def meanwhile(path, *what):
        if not started:
            started.append(path)
            assert predict_files(open_predictor(folder), [images / "b.png"], out)[:2] == (1, 0)
        write(path, *what)

    monkeypatch.setattr(tables, "_write", meanwhile)
    predict_files(open_predictor(folder), [images / "a.png"], out)
    assert [row["image"] for row in areas(out)] == ["a", "a", "b", "b"]


def test_two_runs_predict_into_one_folder_at_once(folder, images, tmp_path):
    out, given = tmp_path / "out", [images / "a.png", images / "b.png"]

    def meanwhile(*_):
        assert predict_files(open_predictor(folder), given[1:], out)[:2] == (1, 0)

    assert predict_files(open_predictor(folder), given[:1], out, on_progress=meanwhile)[:2] == (1, 0)
    assert predict_files(open_predictor(folder), given, out)[:2] == (0, 2)


def test_an_earlier_mask_of_another_size_is_reported(folder, images, tmp_path):
    """Changed since it was written."""
    out = predict_into(folder, images, tmp_path / "out")
    Image.fromarray(np.zeros((61, 40), np.uint8)).save(out / "a.png")
    ((_, message),) = predict_files(open_predictor(folder), [images], out).failed
    assert "sizes 1x61x40 and 1x40x61" in message


def test_tiles_are_predicted_at_the_original_resolution(folder, images, tmp_path, monkeypatch):
    predictor, shapes = open_predictor(folder), []
    predict = predictor.predict

    def watched(image, modality=None) -> Prediction:
        shapes.append(image.shape)
        return predict(image)

    monkeypatch.setattr(predictor, "predict", watched)
    assert predict_files(predictor, [images / "b.png"], tmp_path / "out", Extras(tile=True)) == (1, 0, [], [])
    assert set(shapes) == {(32, 48, 3)}
    assert len(shapes) > 1
    assert Image.open(tmp_path / "out" / "b.png").size == (33, 70)
