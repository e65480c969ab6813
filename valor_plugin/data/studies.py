"""Studies in, rows for the trainers out. A studies file is JSONL, one study a line:

    {"id": "s1", "image": "images/s1.png", "report": "The lungs are clear."}

`image` is relative to the file; `report` may be missing or null where the radiologist's report is
not known, which stage 2 does not need. `view` may say how the film was taken, as DICOM does ("PA",
"LATERAL"): the X-ray expert does not judge side views.
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from reward_sdk.errors import ConfigError
from reward_sdk.images import check_size
from reward_sdk.types import ImageRef


@dataclass(frozen=True)
class Study:
    """One chest X-ray examination.

    Attributes:
        id: unique name.
        image: path of the film.
        report: the radiologist's report without tags, or None.
        view: how it was taken, or None where that is not known.
    """

    id: str
    image: Path
    report: str | None = None
    view: str | None = None

    @property
    def film(self) -> ImageRef:
        """The film as rewards take it."""
        return ImageRef(path=str(self.image), view=self.view)


def read_studies(path: str | Path) -> list[Study]:
    """The studies of a JSONL file, with every image's header read once.

    Raises:
        ConfigError: naming file and line, for a missing file, an empty one, a line that is not a
            study, an id that occurs twice, an image that is missing or not an image.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # reports may hold U+2028 and its like
    except OSError as error:
        raise ConfigError(f"cannot read studies {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason}") from None
    studies: list[Study] = []
    places: list[str] = []
    first: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        study = _study(line, path.parent, place)
        if study.id in first:
            raise ConfigError(f"{place}: id {study.id!r} was used before, in {first[study.id]}")
        first[study.id] = place
        studies.append(study)
        places.append(place)
    if not studies:
        raise ConfigError(f"{path} holds no study: it needs one JSON object per line")
    with ThreadPoolExecutor(16) as pool:
        for place, problem in zip(places, pool.map(_image_problem, studies), strict=True):
            if problem:
                raise ConfigError(f"{place}: {problem}")
    return studies


def _study(line: str, folder: Path, place: str) -> Study:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place} is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{place}: a study is a JSON object with `id`, `image` and `report`")
    for key in ("id", "image"):
        if not isinstance(row.get(key), str) or not row[key]:
            raise ConfigError(f"{place}: the study has no {key!r} (a text)")
    for key in ("report", "view"):
        if not isinstance(row.get(key), str | None):
            raise ConfigError(f"{place}: {key!r} must be a text or null, not {row[key]!r}")
    image = (folder / row["image"]).resolve()
    return Study(row["id"], image, row.get("report"), row.get("view"))


_ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
_TAIL = 4096


def _image_problem(study: Study) -> str | None:
    """Reads the header, and the end of PNG and JPEG files, which tells at little cost that nothing
    was cut off; any other file, and one without its end mark, is decoded."""
    try:
        with Image.open(study.image) as image:
            check_size(image, f"image {study.image}")
            end = _ENDS.get(image.format or "")
            with study.image.open("rb") as file:
                file.seek(max(0, study.image.stat().st_size - _TAIL))
                if end is None or end not in file.read():
                    image.load()
    except FileNotFoundError:
        return f"image {study.image} of study {study.id!r} does not exist"
    except Exception as error:  # Pillow raises many kinds
        return f"image {study.image} of study {study.id!r} cannot be read: {error}"
    return None


def studies_of_folder(folder: Path) -> list[Study]:
    """Every PNG or JPEG below a folder as a study without a report, in the order of their names.

    Raises:
        ConfigError: there is none, or one cannot be read.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    studies = [Study(str(path.relative_to(folder)), path.resolve()) for path in files]
    if not studies:
        raise ConfigError(f"{folder} holds no PNG or JPEG image")
    for study in studies:
        if problem := _image_problem(study):
            raise ConfigError(problem)
    return studies


def write_studies(studies: Iterable[Study], path: Path) -> None:
    """Writes a studies file whose image paths are relative to it where they can be."""
    parent = path.parent.resolve()
    with path.open("w", encoding="utf-8") as file:
        for study in studies:
            image = study.image
            if image.is_relative_to(parent):
                image = image.relative_to(parent)
            row = {"id": study.id, "image": str(image), "report": study.report}
            if study.view is not None:
                row["view"] = study.view
            file.write(json.dumps(row) + "\n")


def write_host_rows(
    studies: Iterable[Study], prompt: str, path: Path, must_match: bool = False
) -> None:
    """Writes the dataset that the host reads: prompt, image, and what rewards need as the label.

    The label is a JSON string, because `datasets` would pad a mapping with nulls, and because it is
    the only channel from the data to a reward.

    Args:
        must_match: a run goes on with the rows that are there.

    Raises:
        ConfigError: they must match and do not.
    """
    new = path.with_name(path.name + ".part")
    with new.open("w", encoding="utf-8") as file:
        for study in studies:
            row = {
                "prompt": f"<image>{prompt}",
                "images": [str(study.image)],
                "label": json.dumps({"id": study.id, "report": study.report, "view": study.view}),
            }
            file.write(json.dumps(row) + "\n")
    if must_match and not (path.exists() and filecmp.cmp(path, new, shallow=False)):
        raise ConfigError(
            f"the studies of the unfinished run in {path.parent} have changed (compare {path.name} "
            f"and {new.name}): choose another folder with --out, or remove it"
        )
    new.replace(path)
