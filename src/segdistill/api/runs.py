"""A run is a folder: what is written into it before training, and read back to resume."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from ..formats import replacing
from ..types import UserError
from .options import TrainOptions

REPORTED = ("segdistill", "torch", "lightning-fabric", "numpy", "scipy", "pillow", "safetensors")
OF_DATA = ("data/check.json", "data/data.json")
HELD = (  # of a run, or of evaluate --out: none is written over
    *("report.html", "scores.csv", "student", "checkpoints", "run.json", "log.jsonl"),
    *("data/splits.csv", "data/mapping.json", "data/sets", *OF_DATA),
)


def method_named(name: str) -> Any:
    """The method class; UserError for a name that does not exist."""
    from ..methods import METHODS

    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"--method {str(name)[:50]!r}: no such method; choose one of {', '.join(METHODS)}")
    return METHODS[name]


def new_folder(out: Path | None, data: Sequence[Path], options: TrainOptions) -> Path:
    """The folder of a new run; UserError where one, or a part of one, is there already."""
    if out is None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        name = "+".join(folder.resolve().stem for folder in data[:3]) + ("+more" if len(data) > 3 else "")
        out = Path("runs") / f"{name}-{options.method}-{stamp}"
    if (out / "config.yaml").exists():
        raise UserError(f"{out}: holds a run already; continue it with --resume {out}, or choose another --out")
    if held := next((name for name in HELD if (out / name).exists()), None):
        raise UserError(f"{out}: holds {held} already, but no run; choose another --out")
    if out.is_file():
        raise UserError(f"{out}: is a file; --out needs a folder")
    try:
        (out / "data").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be created ({error.strerror}); choose another --out") from None
    return out


def take_back(out: Path) -> None:
    """Remove what a run wrote before its first update, and folders that are then empty; nothing else."""
    data = out / "data"
    of_sets = [part / name for part in (data, *data.glob("sets/*")) for name in ("splits.csv", "mapping.json")]
    written = [out / name for name in ("config.yaml", "run.json", "log.jsonl", ".lock", *OF_DATA)]
    for file in (*of_sets, *written):
        file.unlink(missing_ok=True)
    for folder in (*data.glob("sets/*"), data / "sets", data, out):
        with suppress(OSError):  # something is in it, or it never was
            folder.rmdir()


def config_text(data: Sequence[Path], options: TrainOptions, config: Any) -> str:
    """Everything that decides the run, as YAML that `train --config` takes."""
    folders = [str(folder.resolve()) for folder in data]
    values = {"data": folders if len(folders) > 1 else folders[0], **asdict(options), options.method: asdict(config)}
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def read_config(run: Path) -> tuple[list[Path], TrainOptions, Any]:
    """(data, options, the method's config) of a run folder; UserError when it is none."""
    try:
        values: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        config = method_named(values["method"]).Config(**values.pop(values["method"]))
        given = values.pop("data")
        data = [Path(folder) for folder in (given if isinstance(given, list) else [given])]
        unknown = values.keys() - {field.name for field in fields(TrainOptions)}
        if unknown:
            raise KeyError(*unknown)
        for name in ("cache", "baseline"):
            values[name] = Path(values[name]) if values.get(name) else None
        return data, TrainOptions(**values), config
    except FileNotFoundError:
        raise UserError(f"{run}: no run to resume (no config.yaml); give the folder that train wrote") from None
    except (OSError, TypeError, ValueError, LookupError, AttributeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{run / 'config.yaml'}: not a run's configuration ({reason}); restore the file") from None


def write_text(path: Path, text: str) -> None:
    """Atomic, UTF-8."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Atomic, readable JSON."""
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that this package wrote; UserError when it is damaged."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); restore it, or start the run anew") from None
    return values


def versions() -> dict[str, str]:
    """Versions of what decides the numbers, as far as it is installed: an exported file needs no torch."""
    found = {"python": platform.python_version()}
    for name in REPORTED:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> str:
    """System and processor; with torch also its kernels' instructions, which decide its last digits, and GPU."""
    known = f"{platform.system()} {platform.machine()}"
    torch = sys.modules.get("torch")  # an exported file is scored without
    if torch is None:
        return known
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch that we take
    kernels = next(
        (name for name in ("amx_bf16", "avx512_bf16") if can.get(name)), torch.backends.cpu.get_cpu_capability()
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return ", ".join(filter(None, (known, can.get("cpu_name"), kernels, gpu)))


def provenance() -> dict[str, Any]:
    """Command, machine, versions and time, for run.json."""
    return {
        "command": " ".join(["segdistill", *map(_quoted, sys.argv[1:])])
        if _from_shell()
        else "segdistill (from Python)",
        "machine": machine(),
        "versions": versions(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _from_shell() -> bool:
    return Path(sys.argv[0]).stem == "segdistill" if sys.argv else False


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word else word
