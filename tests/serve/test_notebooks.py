"""The notebooks, executed from clean kernels as a person would: no outputs before, nothing left running after."""

from __future__ import annotations

import base64
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

NOTEBOOKS = Path(__file__).parents[2] / "examples" / "notebooks"
CELL_S, END_S = 240, 30.0
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass
class Desk:
    """Where a person works: a folder, and kernels that know neither this session's Ray nor a person's settings."""

    folder: Path
    home: Path  # its path is short: Ray puts sockets below it

    @property
    def environment(self) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MPL"))}
        return {
            **mine,
            "RAY_TMPDIR": str(self.home),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "IPYTHONDIR": str(self.home / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(self.home / "jupyter"),
            "VLLM_CACHE_ROOT": os.environ.get("VLLM_CACHE_ROOT", str(Path(sys.prefix) / "cache")),
        }

    def execute(self, name: str) -> list[list[Any]]:
        """The code cells of each kernel's share, with outputs: a cell with the tag `restart` begins in a new kernel."""
        notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
        shares: list[list[Any]] = [[]]
        for cell in notebook.cells:
            if "restart" in cell.metadata.get("tags", ()):
                shares.append([])
            shares[-1].append(cell)
        for cells in shares:
            share = nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)
            resources = {"metadata": {"path": str(self.folder)}}
            client = nbclient.NotebookClient(share, timeout=CELL_S, startup_timeout=CELL_S, resources=resources)
            client.execute(env=self.environment)
        return [[cell for cell in cells if cell.cell_type == "code"] for cells in shares]

    def processes(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._is_here(process)]

    def _is_here(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("RAY_TMPDIR") == str(self.home)
        except psutil.Error:
            return False

    def wait_quiet(self) -> list[psutil.Process]:
        """What still runs after END_S."""
        end = time.monotonic() + END_S
        while (running := self.processes()) and time.monotonic() < end:
            time.sleep(0.2)
        return running


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path, Path(tempfile.mkdtemp(prefix="kvn")))
    yield desk
    for process in desk.processes():
        with suppress(psutil.NoSuchProcess):
            process.kill()
    shutil.rmtree(desk.home, ignore_errors=True)


def outputs(cells: list[Any], kind: str) -> list[str]:
    """The rich outputs of a MIME type, in order."""
    return [output.data[kind] for cell in cells for output in cell.outputs if kind in output.get("data", ())]


def printed(cells: list[Any]) -> str:
    return "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")


def captions(cells: list[Any]) -> list[str]:
    return [found for shown in outputs(cells, "text/html") for found in re.findall(r"<caption[^>]*>(.*?)<", shown)]


def pictures(cells: list[Any]) -> list[bytes]:
    return [base64.b64decode(each) for each in outputs(cells, "image/png")]


@pytest.mark.timeout(300)
def test_the_first_walk_and_a_restarted_kernel_that_finds_its_fabric(desk: Desk) -> None:
    before, after = desk.execute("first_walk.ipynb")
    assert_in_order(
        captions(before),
        "Fabric &#x27;first-walk&#x27; job: 2 endpoints, 0 caches",
        "Fabric &#x27;first-walk&#x27; job: 2 endpoints, 2 caches",
        "cache ",
        "transfer [0-9a-f]{32}: landed",
        "transfer [0-9a-f]{32}: landed",
        "transfer [0-9a-f]{32}$",
        "grant .* of request request-1: landed",
        "endpoint 1",
        "caches",
        "links",
        "Fabric &#x27;kept&#x27; detached: 2 endpoints, 2 caches",
    )
    assert_in_order(captions(after), "Fabric &#x27;kept&#x27; detached: 2 endpoints, 2 caches", "transfer .*: landed")
    assert any("CacheNotFound: endpoint 2" in shown for shown in outputs(before, "text/html"))
    assert "GrantRevoked" in printed(before)
    (picture,) = pictures(before)
    assert picture.startswith(PNG)
    assert len(picture) > 10_000
    assert outputs(after, "text/html")[0] == outputs(before, "text/html")[-1]  # the same processes and caches
    assert "3 actors ended" in printed(after)
    assert desk.wait_quiet() == []
    assert list(desk.folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_model_split_in_two(desk: Desk) -> None:
    pytest.importorskip("vllm")
    (cells,) = desk.execute("split_vllm.ipynb")
    assert_in_order(captions(cells), "Fabric &#x27;split&#x27; detached: 2 endpoints")
    assert len(printed(cells).split()) > 20
    assert any("assert tokens == expected" in cell.source for cell in cells)
    (picture,) = pictures(cells)
    assert picture.startswith(PNG)
    assert len(picture) > 10_000
    assert desk.wait_quiet() == []


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in cells] == [[] for _ in cells]
    assert {cell.execution_count for cell in cells} == {None}


def assert_in_order(found: list[str], *patterns: str) -> None:
    rest = iter(found)
    for pattern in patterns:
        assert any(re.match(pattern, each) for each in rest), f"no {pattern!r} in its place among {found}"
