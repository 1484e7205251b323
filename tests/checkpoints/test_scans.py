"""Published models of volumes, by a stand-in for the package that runs them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from published import CARDS, CHECKPOINTS, LIBRARY

from scripts.checkpoints import trying
from scripts.checkpoints.attempt import attempt, refused
from scripts.checkpoints.found import Prompt
from scripts.checkpoints.pictures import Picture, open_picture
from scripts.checkpoints.report import page, tried
from scripts.checkpoints.runners import MOST_THINGS
from scripts.checkpoints.scans import labelled

np = pytest.importorskip("numpy")
nibabel = pytest.importorskip("nibabel")

pytestmark = pytest.mark.torch

ID, EACH = next((id, each) for id, each in CHECKPOINTS.items() if each.load.library == "TotalSegmentator")

STAND_IN = """
import nibabel, numpy
calls = []
def totalsegmentator(input, output=None, ml=False, task="total", device="gpu", quiet=False):
    calls.append((ml, task, device))
    values = numpy.asarray(input.dataobj)
    return nibabel.Nifti1Image((values > 0).astype("u1") + (values > 1), input.affine)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two modules of the package that are used, and what pip writes of its version."""
    package = tmp_path / "packages/totalsegmentator"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "python_api.py").write_text(STAND_IN)
    (package / "map_to_binary.py").write_text("class_map = {'total': {1: 'liver', 2: 'spleen'}}")
    told = tmp_path / "packages/TotalSegmentator-2.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: TotalSegmentator\nVersion: 2.0\n")
    monkeypatch.syspath_prepend(str(package.parent))
    yield
    for name in [name for name in sys.modules if name.startswith("totalsegmentator")]:
        del sys.modules[name]


@pytest.fixture
def scan(tmp_path: Path) -> Picture:
    """20 x 20 x 20 voxels of a millilitre each: 4,000 of air, 3,000 of one value, 1,000 of another."""
    values = np.zeros((20, 20, 20), dtype="f4")
    values[10:] = 1
    values[10:, :, 15:] = 2
    nibabel.save(nibabel.Nifti1Image(values, np.diag([10.0, 10, 10, 1])), tmp_path / "ct.nii.gz")
    return open_picture(tmp_path / "ct.nii.gz")


def test_structures_are_named_measured_and_drawn_and_the_package_runs_once(stand_in: None, scan: Picture) -> None:
    done = attempt(ID, EACH, scan, Prompt(), "cpu")
    assert done.error == ""
    assert done.found is not None
    assert [thing.name for thing in done.found.things] == ["liver, 3,000 ml", "spleen, 1,000 ml"]
    assert all(thing.mask.shape == scan.image.size[::-1] for thing in done.found.things if thing.mask is not None)
    assert done.found.remark.startswith("2 structures; 0 s, with loading")
    assert (done.ms, done.versions["TotalSegmentator"]) == (None, "2.0")
    assert sys.modules["totalsegmentator.python_api"].calls == [(True, EACH.load.name, "cpu")]  # type: ignore[attr-defined]
    text = page("ct", scan, [tried("Model", EACH, "MIT", done)], Prompt(), random=False)
    assert text.count("data:image/jpeg;base64,") == 2
    assert "spleen, 1,000 ml" in text
    assert (
        attempt(ID, EACH, scan, Prompt(), "cpu", random=True).error
        == "TotalSegmentator has no network without its weights"
    )


def test_a_map_of_another_grid_is_refused_and_of_very_many_structures_the_largest_are_shown(scan: Picture) -> None:
    assert scan.volume is not None
    with pytest.raises(ValueError, match="labels of"):
        labelled(np.zeros((4, 4, 4), dtype=int), {}, scan.volume)
    found = labelled(np.arange(8000).reshape(20, 20, 20) // 100, {}, scan.volume)
    assert len(found.things) == MOST_THINGS
    assert found.remark == "79 structures, of which the 40 largest are shown"


def test_without_the_package_a_line_says_how_to_install_it_and_what_else_takes_a_volume(
    scan: Picture, tmp_path: Path
) -> None:
    assert refused(EACH, "volume") == "needs the package TotalSegmentator: pip install TotalSegmentator"
    slug = ID.partition("/")[0]
    given = trying.argparse.Namespace(models=(slug,), checkpoint=(), weights="published", device="cpu")
    tries, problems = trying._tries(LIBRARY, scan, Prompt(), given)
    assert tries == []
    assert problems == [
        f"{slug}: needs the package TotalSegmentator: pip install TotalSegmentator",
        "with --weights packaged a volume is looked at by brain-extraction",
    ]
    assert trying.choose(CARDS, (), (), "volume")[1] == [f"say which with --models: {slug}"]
