"""XML files and folders of Pascal VOC."""

import pathlib

from retinanet_jax.data.sources.voc import VocSource


def voc_object(name: str, *corners: object, more: str = "") -> str:
    x1, y1, x2, y2 = corners
    # The order in some files of VOC2012.
    box = f"<xmax>{x2}</xmax><xmin>{x1}</xmin><ymax>{y2}</ymax><ymin>{y1}</ymin>"
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def voc_xml(*objects: str, file_name: str = "", size: tuple | None = (40, 60)) -> str:
    named = f"<filename>{file_name}</filename>" if file_name else ""
    sized = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>" if size else ""
    return f"<annotation>{named}{sized}{''.join(objects)}</annotation>"


class Devkit:
    """A folder in the layout of the devkit; all images are 40 x 60."""

    def __init__(self, root: pathlib.Path, image: bytes):
        self.root = root
        self.image = image
        self.names: list[str] = []
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)

    def add(self, name: str, xml: str) -> None:
        (self.root / "Annotations" / f"{name}.xml").write_text(xml)
        (self.root / "JPEGImages" / f"{name}.jpg").write_bytes(self.image)
        self.names.append(name)
        self.write_split("train", *self.names)

    def write_split(self, split: str, *lines: str) -> None:
        (self.root / f"ImageSets/Main/{split}.txt").write_text("\n".join(lines) + "\n")

    def load(self, **changes) -> VocSource:
        arguments = {"images": None, "split": "train", "categories": ()} | changes
        return VocSource(arguments.pop("annotations", self.root), **arguments)

    def load_side_by_side(self, **changes) -> VocSource:
        """Load the devkit's XML files as a folder that labelImg has written."""
        for split in (self.root / "ImageSets/Main").iterdir():
            split.unlink()
        changes = {"annotations": self.root / "Annotations", "split": ""} | changes
        return self.load(**{"images": self.root / "JPEGImages"} | changes)
