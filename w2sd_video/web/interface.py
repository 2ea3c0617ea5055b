"""The studio in Gradio: a form, a queue with progress, the player of the pages, and the history."""

from __future__ import annotations

import html
from dataclasses import astuple
from typing import Any, get_args

import gradio as gr

from w2sd_video.messages import ConfigError, first_line, is_out_of_memory
from w2sd_video.reflection_settings import Inversion
from w2sd_video.rendering.load import LoadError
from w2sd_video.rendering.video import VideoError
from w2sd_video.web.workbench import Wish, Workbench

_INVERSIONS = list(get_args(Inversion))
_ABOUT = """# w2sd-video studio
Weak, strong, strong at equal cost, and what the configuration says, such as W2SD, from the same noise."""


def interface(workbench: Workbench, first: str) -> gr.Blocks:
    """Return the studio.

    Args:
        workbench: what makes the clips.
        first: the configuration that is chosen at first.
    """
    wish = workbench.wish_of(first)
    with gr.Blocks(title="w2sd-video studio", analytics_enabled=False, fill_width=True) as studio:
        gr.Markdown(_ABOUT)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                configuration = gr.Dropdown(list(workbench.configurations), value=first, label="Configuration")
                prompt = gr.Textbox(wish.prompt, label="Prompt", lines=2)
                with gr.Accordion("Pair", open=False):
                    strong = gr.Textbox(wish.strong, label="Strong (YAML; what is left out is as in base)", lines=2)
                    weak = gr.Textbox(wish.weak, label="Weak (YAML; what is left out is as in base)", lines=2)
                steps = gr.Number(wish.steps, label="Steps", precision=0)
                strength = gr.Number(wish.strength, label="Strength (empty: as configured)")
                start = gr.Slider(0, 1, wish.start, label="Reflected from, share of the steps")
                stop = gr.Slider(0, 1, wish.stop, label="to (0 to 1: all but the last step)")
                inversion = gr.Dropdown(_INVERSIONS, value=wish.inversion, label="Inversion")
                seed = gr.Number(wish.seed, label="Seed", precision=0)
                make = gr.Button("Make the clips", variant="primary")
                status = gr.Textbox(label="Status", interactive=False, lines=2)
            with gr.Column(scale=4, min_width=340):
                history = gr.Dropdown(
                    list(workbench.history().items()),
                    value=[],
                    multiselect=True,
                    label="History (those of one prompt and seed are put side by side)",
                )
                player = gr.HTML(_frame(""))
                with gr.Tab("Script"):
                    script = gr.Code(language="python", label="A script that makes the last clip", interactive=False)
                with gr.Tab("Configuration"):
                    text = gr.Code(language="yaml", label="For w2sd-video render --config FILE.yaml", interactive=False)
        form = [configuration, prompt, strong, weak, steps, strength, start, stop, inversion, seed]
        shown = [player, script, text]

        def filled_in(name: str) -> tuple[Any, ...]:
            return astuple(workbench.wish_of(name))[1:]

        def looked_at(names: list[str]) -> tuple[Any, ...]:
            try:
                made = workbench.made(names[-1]) if names else None
            except ConfigError as error:
                raise gr.Error(html.escape(str(error))) from error
            page = workbench.page(names) if names else ""
            return _frame(page), made.script if made else "", made.configuration if made else ""

        def made_of(*values: Any, progress: gr.Progress = gr.Progress(track_tqdm=True)) -> tuple[Any, ...]:  # noqa: B008
            try:
                made = workbench.make(Wish(*values), progress)
            except Exception as error:
                if not (isinstance(error, (ConfigError, LoadError, VideoError)) or is_out_of_memory(error)):
                    raise  # nobody foresaw it: Gradio writes where it comes from to the terminal
                return first_line(error), gr.skip(), gr.skip(), gr.skip(), gr.skip()
            choices = gr.Dropdown(list(workbench.history().items()), value=[made.name])
            return f"made {made.name}", choices, _frame(workbench.page([made.name])), made.script, made.configuration

        configuration.input(filled_in, configuration, form[1:], show_progress="hidden")
        history.input(looked_at, history, shown, concurrency_limit=None)
        make.click(made_of, form, [status, history, *shown], concurrency_limit=1, show_progress_on=[status])
        studio.load(lambda: gr.Dropdown(list(workbench.history().items())), None, history, show_progress="hidden")
    return studio


def launch(studio: gr.Blocks, host: str, port: int, is_blocking: bool = True) -> str:
    """Serve the studio, and return its address; nothing but the studio is served, no file of this machine."""
    _, address, _ = studio.queue(default_concurrency_limit=1).launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        allowed_paths=[],
        max_file_size="1kb",
        enable_monitoring=False,
        footer_links=[],
        ssr_mode=False,
        prevent_thread_lock=not is_blocking,
    )
    return address


def _frame(page: str) -> str:
    """Return a page in a frame of its own, whose scripts cannot reach the studio."""
    if not page:
        return "<p>What is made is shown here.</p>"
    return (
        '<iframe title="Player" sandbox="allow-scripts allow-downloads allow-modals" '
        f'style="width: 100%; height: 80vh; border: 1px solid #d9dde3" srcdoc="{html.escape(page)}"></iframe>'
    )
