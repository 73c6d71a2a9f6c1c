"""Detectors by name and by file: fetched once, checked, converted once, and then read as they are.

The published files are small ones of the same format, on a server that stands for the hosts.
"""

import pickle
import shutil

import jax
import numpy as np
import pytest

from retinanet_jax import Detector, checkpoint, weights
from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.data.sources.coco import COCO_CATEGORIES
from retinanet_jax.weights import cached, convert, named
from retinanet_jax.weights.download import KNOWN, Published

NAME = "torchvision_v2"
FILE = named.DETECTORS[NAME].file


@pytest.fixture
def read_files(monkeypatch, toy_config, places):
    """The content of each file that is read as a detector, with one array of three numbers."""
    read = []

    def read_detector(path, source=None, **_):
        read.append(path.read_bytes())
        variables = {"params": {"kernel": np.float32(list(read[-1][-3:]))}}
        detector = Checkpoint(variables, toy_config, COCO_CATEGORIES, 0, path)
        return convert.Imported(source or "torchvision_v1", detector, ("the reason",))

    monkeypatch.setattr(convert, "read_detector", read_detector)
    return read


def kernel(weights):
    return cached.load(weights).variables["params"]["kernel"].tolist()


def save(path, arrays):
    """Write arrays as the libraries publish them."""
    if path.suffix == ".pkl":
        path.parent.mkdir()
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    else:
        weights.save_arrays(path, arrays)


def assert_equal_trees(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize(
    "name",
    [
        "torchvision_v2",
        pytest.param("torchvision_v1", marks=pytest.mark.slow),
        pytest.param("detectron2_r50_3x", marks=pytest.mark.slow),
    ],
)
def test_a_name_is_downloaded_and_converted_once(
    name, publish, server, places, capsys, monkeypatch, arrays_of
):
    source, published = named.DETECTORS[name].source, named.DETECTORS[name].file
    save(places / "host" / published, arrays_of(source))
    digest = publish(name, (places / "host" / published).read_bytes())
    detector = Detector.load(name)
    file = places / "cache/retinanet_jax" / published
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"downloading {server.url('good')}/{published} to {file} (")
    assert detector.checkpoint.categories == COCO_CATEGORIES
    epsilon = 0.0 if name == "torchvision_v1" else 1e-5
    assert detector.checkpoint.config.model.norm_epsilon == epsilon
    expected = convert.read_detector(file, source, norm_epsilon=epsilon).checkpoint
    assert_equal_trees(jax.device_get(detector.checkpoint.variables), expected.variables)
    assert detector.checkpoint.config.to_json() == expected.config.to_json()

    # Neither the network nor the file is needed again.
    file.unlink()
    assert_equal_trees(cached.load(name).variables, expected.variables)
    assert capsys.readouterr().out == ""
    assert len(server.requests) == 1
    (conversion,) = (places / "cache/retinanet_jax/checkpoints").iterdir()
    assert conversion.name.startswith(f"{name}-{digest}-")


@pytest.mark.usefixtures("read_files")
def test_another_version_of_the_package_converts_again(publish, server, monkeypatch, places):
    publish()
    first = cached.checkpoint_folder(NAME)
    monkeypatch.setattr(cached.retinanet_jax, "__version__", "99.0")
    second = cached.checkpoint_folder(NAME)
    assert (first != second, second.name.endswith("-99.0"), first.exists()) == (True, True, True)
    assert len(server.requests) == 1


@pytest.mark.usefixtures("read_files")
def test_without_a_network_the_error_has_the_path_of_the_file_which_is_then_used(
    publish, server, monkeypatch, places
):
    digest = publish()
    url = f"http://127.0.0.1:9/{FILE}"
    monkeypatch.setitem(KNOWN, FILE, Published(url, "sha256", digest))
    place = places / "cache/retinanet_jax" / FILE
    with pytest.raises(OSError, match="cannot be reached") as error:
        Detector.load(NAME)
    assert str(error.value).startswith(f"{url} cannot be reached (")
    assert str(error.value).endswith(
        f"; download it where there is a network, put it at {place} and run this again."
    )
    assert "\n" not in str(error.value)
    place.write_bytes(server.files[FILE])
    assert kernel(NAME) == list(b"hts")
    assert server.requests == []


@pytest.mark.parametrize("is_in_weights", [False, True])
def test_a_wrong_checksum_is_an_error_and_leaves_nothing(publish, server, places, is_in_weights):
    digest = publish()
    server.files[FILE] = b"others"
    if is_in_weights:
        (places / "weights").mkdir()
        (places / "weights" / FILE).write_bytes(server.files[FILE])
    with pytest.raises(ValueError, match="has the sha256") as error:
        Detector.load(NAME)
    assert f"but that of the published file begins with {digest}; " in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((places / "cache").rglob("*.pth"))
    assert not (places / "cache/retinanet_jax/checkpoints").exists()


@pytest.mark.usefixtures("read_files")
def test_of_two_processes_at_once_the_first_to_finish_writes_the_conversion(
    publish, places, monkeypatch
):
    publish()
    write_imported = checkpoint.write_imported

    def overtaken(draft, *content):
        write_imported(draft, *content)
        name = draft.name.removeprefix(".").rpartition("-")[0]
        shutil.copytree(draft, draft.with_name(name))  # by the other process

    monkeypatch.setattr(checkpoint, "write_imported", overtaken)
    folder = cached.checkpoint_folder(NAME)
    assert list(folder.parent.iterdir()) == [folder]
    assert kernel(NAME) == list(b"hts")


@pytest.mark.usefixtures("read_files")
def test_a_conversion_that_fails_leaves_nothing(publish, monkeypatch, places):
    publish()

    def fail(draft, *_):
        (draft / "half").write_text("")
        raise OSError("No space left on device")

    monkeypatch.setattr(cached.checkpoint, "write_imported", fail)
    with pytest.raises(OSError, match="No space left"):
        cached.checkpoint_folder(NAME)
    assert list((places / "cache/retinanet_jax/checkpoints").iterdir()) == []


# ---- files


@pytest.mark.usefixtures("read_files")
def test_a_cache_that_is_full_or_cannot_be_written_is_named(publish, monkeypatch, places):
    publish()
    usage = shutil.disk_usage(places)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=11))
        with pytest.raises(OSError, match=r"cannot be written \(it needs 0 MB\); set .*XDG_CAC"):
            cached.load(NAME)
    (places / "cache/retinanet_jax" / cached.FOLDER).rmdir()
    (places / "cache/retinanet_jax" / cached.FOLDER).touch()
    with pytest.raises(OSError, match=r"checkpoints/.*cannot be written .* XDG_CACHE_HOME"):
        cached.load(NAME)


def test_a_folder_with_files_of_weights_names_them(places):
    for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
        (places / name).touch()
    with pytest.raises(
        ValueError, match=r"give one of them: model\.safetensors, pytorch_model\.bin\.$"
    ):
        cached.load(places)


def test_only_what_a_file_does_not_show_is_answered_with_flags(places):
    (places / "w.pth").write_text("<html>")
    with pytest.raises(ValueError, match=r"w\.pth is a web page.*shows\.$"):
        cached.load("w.pth")


def test_a_file_is_converted_once_by_its_content(read_files, places, capsys):
    file = places / "model.pth"
    file.write_bytes(b"abc")
    assert kernel("model.pth") == list(b"abc")
    assert capsys.readouterr().out == "model.pth: a detector of torchvision_v1; the reason\n"
    (places / "other").mkdir()
    assert kernel(file.rename(places / "other/model.pth")) == list(b"abc")
    assert capsys.readouterr().out == ""
    file.write_bytes(b"abd")
    assert kernel("model.pth") == list(b"abd")
    assert read_files == [b"abc", b"abd"]


def test_what_a_file_does_not_show_is_asked_for_with_the_command_that_takes_it(arrays_of, places):
    weights.save_arrays("mine.pth", arrays_of("torchvision_v2", 3))
    with pytest.raises(ValueError, match="3 outputs") as error:
        cached.load("mine.pth")
    assert "--categories=NAME,NAME" in str(error.value)
    assert "`retinanet-jax import-weights --input=mine.pth --output=DIR`" in str(error.value)


@pytest.mark.usefixtures("read_files")
def test_a_file_of_a_url_is_converted(server):
    server.files["mine.pth"] = b"url"
    assert kernel(server.url("good/mine.pth")) == list(b"url")


# ---- what an argument means


@pytest.mark.usefixtures("read_files")
def test_a_folder_with_a_checkpoint_precedes_a_name_and_another_folder_does_not(
    publish, places, toy_config
):
    publish()
    (places / NAME).mkdir()
    (places / NAME / "notes.txt").write_text("no checkpoint")
    assert cached.checkpoint_folder(NAME).parent.name == "checkpoints"
    assert cached.name_of(NAME) == NAME
    variables = {"params": {"kernel": np.zeros(3, np.float32)}}
    checkpoint.write_imported(places / NAME, variables, toy_config, COCO_CATEGORIES[:2])
    assert cached.name_of(NAME) is None
    assert len(cached.load(NAME).categories) == 2


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("resnet50", r"resnet50 is the backbone .*torchvision_v1, .*train with --weights=resnet50"),
        ("torchvision_v3", r"torchvision_v3 does not exist, and .* did you mean torchvision_v2\?"),
        ("runs/absent", r"runs/absent does not exist, and is no name of published weights; give"),
        (".", r"no checkpoint here; give the working directory"),
    ],
)
def test_an_argument_without_a_detector_is_one_line(places, argument, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        Detector.load(argument)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("read_files")
def test_on_several_hosts_a_conversion_must_exist(publish, monkeypatch):
    publish()
    monkeypatch.setattr(cached.jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="with --distributed, run `retinanet-jax import-weights"):
        cached.load(NAME)
