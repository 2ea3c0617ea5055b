"""Prompts of a file, a prompt a line, rendered one after the other by a pipeline that is loaded once.

Writes a clip for each prompt, named by its number, into a folder; a clip that is there already is left alone, so that
an interrupted run goes on where it stopped. Three prompts take about ten seconds on one CPU core, with 38 network
evaluations each. Run: python examples/many_prompts.py --prompts examples/prompts.txt --folder many_prompts
(``python -m w2sd_video.render --prompts FILE --output FOLDER/`` does it without a script, and with more care.)
"""

from pathlib import Path

import jsonargparse
import torch

from w2sd_video import Branch, reflection
from w2sd_video.miniatures import CALL, load_pipeline, load_weak
from w2sd_video.rendering.sheets import enlarge
from w2sd_video.rendering.video import to_uint8, write_video

PROMPTS = Path(__file__).with_name("prompts.txt")


def main(prompts: Path = PROMPTS, folder: Path = Path("many_prompts")) -> list[Path]:
    """Write what is not there yet, and return the paths of all clips.

    Args:
        prompts: a file with a prompt a line.
        folder: where the clips go.
    """
    texts = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines()]
    texts = [text for text in texts if text and not text.startswith("#")]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03d}.mp4" for number in range(len(texts))]

    pipe = load_pipeline("animatediff")
    strong, weak = Branch(guidance_scale=1.0), Branch(guidance_scale=1.0, weights=load_weak(pipe))
    with reflection(pipe, strong=strong, weak=weak) as run:
        for seed, (text, path) in enumerate(zip(texts, paths, strict=True)):
            if path.exists():
                continue
            generator = torch.Generator().manual_seed(seed)
            frames = pipe(text, generator=generator, output_type="np", **CALL["animatediff"]).frames[0]
            write_video(path, enlarge(to_uint8(frames)), fps=8)
            print(f"{path}: {text}, network evaluations {run.nfe}")
    return paths


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
