"""The command line: parse, call, print. Only the chosen verb's parser is built, so that help is instant."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .engine.interrupt import Interrupted, sigterm_raised
from .parsing import call, chosen_method, normalised, parse, parser_of, refuse_two_lengths
from .types import UserError

USAGE = """usage: segdistill VERB [options]      (segdistill VERB --help says more)

A large promptable segmentation model and a handful of masks in; a small, prompt-free medical segmenter out.

  demo      the main job on generated images: a few minutes, ends with a report
  train     train a student on a folder of images and masks, score it, report
  evaluate  score a student, or another tool's masks, on a data set
  compare   say whether runs differ: paired by image and seed, with intervals
  predict   write masks for images, with a student or an exported file
  export    write a student as one ONNX file or for OpenVINO; fp32, bf16 or int8
  serve     show a page to drop images on, and answer images over HTTP
  convert   make a student of the weights that KnowSAM, KDAS or ESP-MedSAM published
  extend    one more modality for a trained esp_medsam student; the others stay bit for bit
  check     look for leaks, copies and broken masks in a data set; show an augmentation

examples:
  segdistill train DATA --labelled 60 --size 128 --out runs/first
  segdistill train A B C --modality A=dermoscopy --modality B=xray
  segdistill train --resume runs/first
  segdistill predict runs/first IMAGES --out masks
  segdistill export runs/first --out student.onnx
  segdistill export runs/first --out small.onnx --precision int8 --data DATA
  segdistill serve student.onnx
"""


# The extra `train`
TRAINING = ("torch", "lightning_fabric", "safetensors", "filelock", "transformers", "matplotlib", "jinja2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code: 0, 1 (something was skipped), 2 (unusable input), 128 + signal."""
    _escape_what_cannot_be_written()
    words = normalised(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("segdistill"))
        return 0
    try:
        if words[0] not in VERBS:
            raise UserError(f"no verb {words[0]!r}; choose one of {', '.join(VERBS)}")
        return VERBS[words[0]](words[1:])
    except UserError as error:
        print(f"segdistill: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in TRAINING:
            raise
        wanted = f"{words[0]} needs {error.name}; install it with: pip install segdistill[train]"
        file = "(predict, evaluate and serve do without if given a file of export)"
        print(f"segdistill: {wanted} {file}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"segdistill: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes that Ctrl-C reached
            print("segdistill: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `segdistill ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a disk, a permission, a network; nothing that a traceback helps with
        reason = " ".join((error.strerror or str(error) or type(error).__name__).split())
        where = f"{error.filename}: " if error.filename else ""
        print(f"segdistill: {UserError(f'{where}{reason}; check path, permission and free space')}", file=sys.stderr)
        return 2


def _escape_what_cannot_be_written() -> None:
    """A name may hold characters that the code page of a redirected output lacks; that must end no verb."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _train(words: list[str]) -> int:
    """Train a student; --resume RUN continues one."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP advises against looking for unused parameters
    from jsonargparse import Namespace

    from .api.options import TrainOptions
    from .api.runs import method_named
    from .api.train import resume, train

    name = chosen_method(words)
    parser = parser_of("train", "Train a student on a data folder, score it once on the test split, write a report.")
    parser.add_argument(
        "folders", type=Path, nargs="*", help="folder with images/ and masks/, or a CSV manifest; or several"
    )
    parser.add_argument("--data", type=str | list[str], help="the same, as a run's config.yaml says it")
    parser.add_argument("--out", "-o", type=Path, help="run folder to create (default: runs/NAME-METHOD-TIME)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="carry on the run in this folder")
    parser.add_argument("--config", action="config", help="YAML file of settings: a recipe, or a run's config.yaml")
    parser.add_class_arguments(TrainOptions, as_group=False)
    parser.add_class_arguments(method_named(name).Config, name)
    given = parse(parser, words)
    if given.resume:
        if len(words) > (1 if "=" in words[0] else 2):
            raise UserError("--resume RUN stands alone: a run goes on with the settings it began with")
        resume(given.resume)
        return 0
    data = given.folders or given.data
    if not data:
        raise UserError("train needs a data folder: segdistill train DATA, or --resume RUN")
    if not isinstance(given[name], Namespace):
        raise UserError(f"{name}: {given[name]!r} is no group of settings; write {name}: {{iterations: 1000}}")
    built: Namespace = parser.instantiate(given)
    chosen = {key: built[key] for key in TrainOptions.__dataclass_fields__}
    options = TrainOptions(**chosen | {"method": name})  # also where a --config after --method names another
    refuse_two_lengths(words, name, built[name], options.iterations, options.epochs)
    train(data, given.out, options, built[name])
    return 0


def _evaluate(words: list[str]) -> int:
    """Score a student or masks."""
    from .api.evaluate import evaluate

    parser = parser_of("evaluate", "Score a student, or a folder of any tool's masks, at the original resolution.")
    parser.add_argument("student", help="a student's or run's folder, a file of export, or a folder of predicted masks")
    parser.add_argument(
        "data", nargs="+", help="data folders or manifests; beside masks also a plain folder of reference masks"
    )
    parser.add_argument("--out", "-o", help="folder for scores.csv, summary.json and, for a student, report.html")
    call(parser, evaluate, words)
    return 0


def _compare(words: list[str]) -> int:
    """Compare runs."""
    from .api.compare import compare

    parser = parser_of(
        "compare", "Paired differences to the first run's group, with intervals over patients and seeds."
    )
    parser.add_argument("runs", nargs="+", help="run folders, or folders that evaluate --out wrote; the baseline first")
    parser.add_argument("--out", "-o", help="folder for compare.md and compare.html")
    call(parser, compare, words)
    return 0


def _predict(words: list[str]) -> int:
    """Write masks for images."""
    from .api.use import predict

    parser = parser_of("predict", "Write a mask for each image; outputs that exist are kept.")
    parser.add_argument("student", help="a student's or run's folder, or a file of export")
    parser.add_argument("images", nargs="+", help="files, folders (with subfolders), patterns")
    parser.add_argument(
        "--out",
        "-o",
        required=True,
        help="folder for the masks, areas.csv, predicted.jsonl (what each mask was made of) and, of a student that "
        "tells modalities apart, routing.csv",
    )
    return 1 if call(parser, predict, words).failed else 0


def _export(words: list[str]) -> int:
    """Write a student as a file."""
    from .api.export import export

    parser = parser_of("export", "Write a student as a file that runs without torch: uint8 images in, label maps out.")
    parser.add_argument("student", help="a student's or run's folder")
    parser.add_argument("--out", "-o", required=True, help="the .onnx file to write; .xml for OpenVINO")
    parser.add_argument(
        "--images", nargs="+", default=[], help="images to calibrate int8 and to compare on; fp32 also does without"
    )
    with sigterm_raised():
        call(parser, export, words)
    return 0


def _serve(words: list[str]) -> int:
    """Answer images over HTTP."""
    from .api.serve import leave, serve

    parser = parser_of("serve", "Show a page to drop images on, and answer images with masks, overlays and areas.")
    parser.add_argument("student", help="a student's or run's folder, or a file of export")
    call(parser, serve, words)
    leave()
    return 0


def _convert(words: list[str]) -> int:
    """Make a student of published weights."""
    from .api.convert import SIZES, convert

    parser = parser_of("convert", "Make a student of the weights that a paper's authors published.")
    parser.add_argument("family", choices=tuple(SIZES), help="whose weights they are")
    parser.add_argument("files", nargs="+", help="SGDL_best_model.pth, KDAS's checkpoint, or MODALITY=FILE...")
    parser.add_argument("--out", "-o", required=True, help="folder of the student to write")
    parser.add_argument("--separate_heads", action="store_true", help="esp_medsam: a decoder per modality")
    call(parser, convert, words)
    return 0


def _extend(words: list[str]) -> int:
    """Add a modality to a student."""
    from .api.extend import extend
    from .api.options import TrainOptions
    from .api.runs import method_named

    config = method_named("esp_medsam").Config
    parser = parser_of("extend", "Train one more modality of an esp_medsam student; all else is held still.")
    parser.add_argument("student", help="a student's or run's folder")
    parser.add_argument("--data", nargs="+", required=True, help="data of the new modality: folder or CSV manifest")
    parser.add_argument("--modality", required=True, help="its name")
    parser.add_argument("--out", "-o", help="run folder to create; train --resume goes on with it")
    parser.add_class_arguments(TrainOptions, as_group=False, skip={*OF_THE_STUDENT})
    parser.add_class_arguments(config, "esp_medsam", skip=config.__dataclass_fields__.keys() - {*OF_AN_ADDITION})
    given = parse(parser, words)
    options = {name: given[name] for name in TrainOptions.__dataclass_fields__ if name not in OF_THE_STUDENT}
    settings = config(**{name: given.esp_medsam[name] for name in OF_AN_ADDITION})
    refuse_two_lengths(words, "esp_medsam", given.esp_medsam, given.iterations, given.epochs)
    extend(given.student, given.data, given.modality, given.out, TrainOptions(**options), settings)
    return 0


SHEET = (
    "instead: a contact sheet of this augmentation: weak, strong, weak_strong, evaluation; its own options: "
    "check --show-augment weak --help"
)


def _check(words: list[str]) -> int:
    """Audit a data set, or show an augmentation."""
    from .api.check import check, show_augment

    parser = parser_of(
        "check", "Look for what would spoil a training or its scores; exit code 1 where there is an error."
    )
    showing = any(word.partition("=")[0] == "--show_augment" for word in words)
    parser.add_argument("data", nargs=None if showing else "+", help="data folder or manifest; or several")
    if showing:
        parser.add_argument(
            "--show_augment", dest="preset", required=True, help="weak, strong, weak_strong, evaluation"
        )
        parser.add_argument("--out", "-o", default="augmented.png", help="the PNG to write")
        call(parser, show_augment, words)
        return 0
    parser.add_argument("--show_augment", metavar="PRESET", help=SHEET)
    return 1 if call(parser, check, words).errors else 0


def _demo(words: list[str]) -> int:
    """Run the demo."""
    from .api.demo import demo

    parser = parser_of("demo", "The main job on generated images, from a folder to a report.")
    parser.add_argument("--out", "-o", default="runs/demo", help="folder to create")
    call(parser, demo, words)
    return 0


VERBS: dict[str, Callable[[list[str]], int]] = {
    "demo": _demo,
    "check": _check,
    "train": _train,
    "evaluate": _evaluate,
    "compare": _compare,
    "predict": _predict,
    "export": _export,
    "serve": _serve,
    "convert": _convert,
    "extend": _extend,
}


# Options of train that extend takes from the student, and settings of the method that are left to choose
OF_THE_STUDENT = ("method", "size", "fit", "neighbours", "modality", "balance", "postprocess", "licence")
OF_AN_ADDITION = ("head_iterations", "batch_size", "learning_rate", "final_factor", "patch_weight")
