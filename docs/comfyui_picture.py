"""Draws a workflow as ComfyUI shows it: ``python docs/comfyui_picture.py http://127.0.0.1:8188 WORKFLOW PICTURE``.

Wants a running ComfyUI with these nodes, playwright, and a chromium that it finds or that CHROMIUM names.
"""

import json
import os
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH = 1400

QUIET = {
    "Comfy.TutorialCompleted": True,
    "Comfy.UseNewMenu": "Disabled",
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}
"""What is not the graph is left out."""

SHOW = """async (workflow) => {
    await app.loadApiJson(workflow, "w2sd");
    const nodes = app.graph._nodes, canvas = app.canvas, margin = 40, title = 30;
    const columns = new Map();  // by the number of links to the end
    const place = (node, column) => {
        columns.set(node, Math.max(columns.get(node) ?? 0, column));
        node.inputs.forEach((_, i) => node.getInputNode(i) && place(node.getInputNode(i), column + 1));
    };
    nodes.filter((node) => !node.outputs.some((output) => output.links?.length)).forEach((node) => place(node, 0));
    let x = 0;
    for (let column = Math.max(...columns.values()); column >= 0; column--) {
        const those = nodes.filter((node) => columns.get(node) === column);
        let y = 0;
        for (const node of those) {
            const [width, height] = node.computeSize();
            node.setSize([Math.max(width, 220), height]);
            node.pos = [x, y];
            y += node.size[1] + title + margin;
        }
        x += Math.max(...those.map((node) => node.size[0])) + 2 * margin;
    }
    const left = Math.min(...nodes.map((node) => node.pos[0])) - margin;
    const top = Math.min(...nodes.map((node) => node.pos[1])) - title - margin;
    const width = Math.max(...nodes.map((node) => node.pos[0] + node.size[0])) + margin - left;
    const height = Math.max(...nodes.map((node) => node.pos[1] + node.size[1])) + margin - top;
    canvas.ds.scale = canvas.canvas.clientWidth / width;
    canvas.ds.offset = [-left, -top];
    canvas.draw(true, true);
    return Math.ceil(height * canvas.ds.scale);
}"""


def main(address: str, workflow: str, picture: str) -> None:
    """Open ComfyUI in a browser without a window, load a workflow and save what is seen of it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"))
        page = browser.new_page(viewport={"width": WIDTH, "height": 1600})
        page.request.post(f"{address}/settings", data=QUIET)
        page.goto(address)
        page.wait_for_function("window.app?.graph && document.querySelector('canvas')", timeout=120_000)
        page.wait_for_timeout(3000)  # the last of the interface arrives after the graph
        height = page.evaluate(SHOW, json.loads(Path(workflow).read_text(encoding="utf-8")))
        page.wait_for_timeout(1000)
        page.add_style_tag(content=".comfy-menu { display: none !important }")
        seen = Image.open(BytesIO(page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": height})))
        browser.close()
    seen.convert("RGB").quantize(64).save(picture, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
