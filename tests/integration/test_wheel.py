"""What a user installs: the wheel holds the native part, the types, and the demo's model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_an_installed_wheel_carries_all_that_the_demo_needs(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = ZipFile(wheel).namelist()
    for wanted in (
        "_block_copy.pyi",
        "_device_copy.pyi",
        "_shared_page.pyi",
        "py.typed",
        "model.safetensors",
        "default_prompt.txt",
    ):
        assert any(name.endswith(wanted) for name in names), wanted
    assert sum(name.endswith(".so") for name in names) == 4
    assert not [name for name in names if name.startswith(("tests", "examples", "native_ext")) or "cann" in name]
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, capture_output=True)
    script = (
        "import ray_kvfabric, sys; from ray_kvfabric.demo.checkpoint import default_model_dir, load_checkpoint;"
        "assert ray_kvfabric.__file__.startswith(sys.argv[1]), ray_kvfabric.__file__;"
        "print(load_checkpoint(default_model_dir()).config)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script, str(site)], check=True, capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": str(site)}, timeout=120,
    )  # fmt: skip
    assert "hidden_size" in shown.stdout
