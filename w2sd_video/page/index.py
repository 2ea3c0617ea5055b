"""The page of a folder of renders, made from the sidecars beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from w2sd_video.page.contents import Clip, Group, Kind, Page
from w2sd_video.page.write import write_page

_KINDS: dict[str, Kind] = {".mp4": "video", ".webm": "video", ".png": "pictures", "": "pictures"}
"""How a file is shown by its ending; all others play by themselves."""
_OF_A_SAMPLE = ("prompts", "seed", "output", "inputs")
_OF_A_SAMPLES_CALL = ("negative_prompt",)
"""What may differ between the samples of one job, and stands in the sidecar of each."""


def write_index(folder: Path, notes: Sequence[str] = ()) -> Path:
    """Write index.html, which shows every clip and image of a folder that has a sidecar, and return its path.

    The page names the files and holds none of them, so that it stays small; it is moved with its folder.

    Args:
        folder: of the outputs, which may lie in folders of it.
        notes: lines to say beside, such as which samples failed and why.
    """
    path = folder / "index.html"
    write_page(path, index_page(folder, read_sidecars(folder), notes))
    return path


def read_sidecars(folder: Path) -> dict[Path, dict[str, Any]]:
    """Return the records of all outputs in a folder and below, by their paths relative to it; others are left out."""
    records = {}
    for sidecar in sorted(folder.rglob("*.json")):
        output = sidecar.with_suffix("")
        is_hidden = any(part.startswith(".") for part in sidecar.relative_to(folder).parts)
        if is_hidden or not output.exists():
            continue
        try:
            record = json.loads(sidecar.read_text(encoding="utf-8"))
        except ValueError:
            continue  # a file of another kind, or one that was cut off: its output is no finished sample
        if isinstance(record, dict) and {"config", "prompt", "seed", "nfe", "frames"} <= record.keys():
            records[output.relative_to(folder)] = record
    return records


def index_page(
    folder: Path,
    records: Mapping[Path, Mapping[str, Any]],
    notes: Sequence[str] = (),
    address: Callable[[Path], str] | None = None,
) -> Page:
    """Return the page of records that `read_sidecars` read.

    Args:
        folder: that they are of.
        records: by the paths of the outputs, relative to the folder.
        notes: lines to say beside.
        address: returns what a page calls a file, such as `embedded`; unless given its path from the folder.
    """
    address = address or (lambda file: quote(file.relative_to(folder).as_posix()))
    settings = list(dict.fromkeys(_settings(record) for record in records.values()))
    paths_by_sample: dict[tuple[str, int], list[Path]] = {}
    for path, record in records.items():
        paths_by_sample.setdefault((record["prompt"], record["seed"]), []).append(path)
    groups = []
    for (prompt, seed), paths in paths_by_sample.items():
        clips = [
            clip
            for path in paths
            for clip in _clips(path, records[path], _files(folder / path, address), is_alone=len(paths) == 1)
        ]
        groups.append(Group(prompt, seed, clips))
    count = f"{len(records)} file{'' if len(records) == 1 else 's'}"
    return Page(
        title=f"Renders in {folder.resolve().name}",
        text=f"{count}, {len(groups)} of different prompt or seed, by Weak-to-Strong Diffusion.",
        groups=groups,
        notes=notes,
        facts=_facts(list(records.values())),
        configurations={
            "Configuration" + (f" {number}" if len(settings) > 1 else ""): text
            for number, text in enumerate(settings, start=1)
        },
    )


def _files(output: Path, address: Callable[[Path], str]) -> list[str]:
    """Return the addresses of the file of an output, or of those in its folder."""
    return [address(file) for file in ([output] if output.is_file() else sorted(output.glob("frame-*.png")))]


def _clips(path: Path, record: Mapping[str, Any], files: Sequence[str], is_alone: bool) -> list[Clip]:
    """Return the clips of a file: one, or each of a comparison whose places in the file are known."""
    config, boxes = record["config"], record.get("boxes") or {}
    kind: Kind = _KINDS.get(path.suffix.lower(), "animation")
    frames = int(record["frames"][0])
    if kind == "pictures":
        frames = len(files)  # the contact sheet of a clip is one picture
    whole = Clip("", kind, files, frames, float(config["fps"]))
    captions = {label: f"{sum(counts.values())} NFE" for label, counts in record["nfe"].items()}
    if len(captions) > 1 and boxes and kind != "animation":
        return [
            replace(whole, label=label if is_alone else f"{path.name}: {label}", box=box, caption=captions[label])
            for label, box in boxes.items()
        ]
    label = " | ".join(captions)
    return [
        replace(whole, label=label if is_alone else path.name, caption=f"{'; '.join(captions.values())}; {path.name}")
    ]


def _settings(record: Mapping[str, Any]) -> str:
    """Return what the samples of one job have in common, as YAML."""
    settings = {name: value for name, value in record["config"].items() if name not in _OF_A_SAMPLE}
    call = settings.get("call") or {}
    settings["call"] = {name: value for name, value in call.items() if name not in _OF_A_SAMPLES_CALL}
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _facts(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    versions: dict[str, set[str]] = {}
    for record in records:
        for name, version in record.get("versions", {}).items():
            versions.setdefault(name, set()).add(version)
    facts = {name: ", ".join(sorted(values)) for name, values in versions.items()}
    machines = sorted({record["machine"] for record in records if record.get("machine")})
    days = sorted(record["date"] for record in records if record.get("date"))
    facts |= {"machine": "; ".join(machines)} if machines else {}
    facts |= {"date": days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"} if days else {}
    if seconds := sum(record.get("seconds", 0) for record in records):
        facts["sampling"] = f"{seconds:.4g} seconds in all"
    return facts
