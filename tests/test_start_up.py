"""Start-up is fast because nothing heavy is imported before it is used."""

import subprocess
import sys
import time

import pytest


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "code",
    [
        "import segdistill",
        "import segdistill.formats",
        "from segdistill.cli import main; main(['--help'])",
        "from segdistill.api import use, options, serve",
        "import segdistill.data.manifest, segdistill.data.labels, segdistill.data.cache",
    ],
)
def test_no_torch(code):
    assert not modules_after(code) & {"torch", "lightning_fabric", "matplotlib", "onnxruntime", "scipy"}


def test_help_is_instant():
    command = [sys.executable, "-c", "from segdistill.cli import main; main(['--help'])"]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


def test_the_python_api_has_the_verbs():
    import segdistill

    for name in segdistill.__all__:
        assert callable(getattr(segdistill, name))
    with pytest.raises(AttributeError):
        _ = segdistill.no_such_verb
