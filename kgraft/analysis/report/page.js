"use strict";
(async () => {
  const { documents, items } = JSON.parse(document.getElementById("plots").textContent);
  const inks = {
    light: { text: "#1d1d1f", soft: "#55565c", line: "#d5d6db", ink: "#000000" },
    dark: { text: "#e9eaee", soft: "#b3b6bf", line: "#3d4149", ink: "#ffffff" },
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)");
  const narrow = matchMedia("(max-width: 600px)");
  const plots = {};

  if (items[0].root_ids.length) {
    await Bokeh.embed.embed_items(documents, items);
    for (const model of Bokeh.documents.flatMap((own) => own.roots())) plots[model.name] = model;
  }

  function colour() {
    const painted = dark.matches ? "dark" : "light";
    const ink = inks[painted];
    // not before it is painted: what is printed is what was painted last
    requestAnimationFrame(() => requestAnimationFrame(() => {
      document.documentElement.dataset.painted = painted;
    }));
    for (const plot of Object.values(plots)) {
      for (const own of [...plot.left, ...plot.below, ...plot.right, ...plot.above]) {
        if (own.type === "ColorBar") {
          own.setv({ title_text_color: ink.text, major_label_text_color: ink.text, major_tick_line_color: ink.soft });
        } else {
          own.setv({
            axis_label_text_color: ink.text, major_label_text_color: ink.text,
            axis_line_color: ink.soft, major_tick_line_color: ink.soft,
          });
        }
      }
      for (const own of plot.center) if (own.type === "Grid") own.setv({ grid_line_color: ink.line });
      plot.setv({ outline_line_color: ink.line });
      for (const own of plot.renderers) {
        if (!own.tags.includes("ink")) continue;
        for (const name of ["line_color", "fill_color"]) if (name in own.glyph) own.glyph.setv({ [name]: ink.ink });
      }
    }
  }

  // names of layers take half of a phone; there they are numbered, and named when pointed at
  function fit() {
    for (const plot of Object.values(plots)) {
      for (const tool of plot.toolbar.tools) if (tool.type === "BoxZoomTool") tool.active = !coarse.matches;
      for (const own of plot.left) {
        if (own.name !== "layers") continue;
        own.names ??= own.major_label_overrides;
        const numbers = new Map([...own.names.keys()].map((row) => [row, String(Number(row) + 1)]));
        own.setv({ major_label_overrides: narrow.matches ? numbers : own.names });
        own.axis_label = narrow.matches ? "layer, from the first" : null;
      }
    }
  }

  // bokeh's surfaces can be focused and do nothing then
  function unfocus(root) {
    for (const own of root.querySelectorAll("*")) {
      own.removeAttribute("tabindex");
      if (own.shadowRoot) unfocus(own.shadowRoot);
    }
  }

  function show(fieldset) {
    const inputs = [...fieldset.querySelectorAll("input")];
    const shown = new Set(inputs.filter((own) => own.checked).map((own) => Number(own.value)));
    for (const name of fieldset.dataset.plots.trim().split(" ")) {
      for (const own of plots[name]?.renderers ?? []) own.visible = shown.has(own.tags[0]);
    }
  }

  function move(range, act) {
    const width = range.end - range.start;
    const centre = (range.start + range.end) / 2;
    const [low, high] = range.bounds;
    const wide = Math.min(act === "in" ? width / 2 : act === "out" ? width * 2 : width, high - low);
    const step = act === "left" ? -width / 4 : act === "right" ? width / 4 : 0;
    const start = Math.min(Math.max(centre + step - wide / 2, low), high - wide);
    range.setv({ start, end: start + wide });
  }

  for (const own of document.querySelectorAll(".legend")) {
    own.addEventListener("change", () => show(own));
    for (const button of own.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        for (const input of own.querySelectorAll("input")) input.checked = button.dataset.all === "true";
        show(own);
      });
    }
    show(own); // a browser remembers what was ticked when a page is loaded again
  }
  for (const button of document.querySelectorAll("button[data-plot]")) {
    const { plot, act } = button.dataset;
    button.addEventListener("click", () => {
      if (act === "reset") plots[plot].reset.emit();
      else move(plots[plot].x_range, act);
    });
  }
  dark.addEventListener("change", colour);
  for (const own of [coarse, narrow]) own.addEventListener("change", fit);
  colour();
  fit();
  for (const own of document.querySelectorAll(".canvas")) unfocus(own);
  document.documentElement.dataset.ready = "true";
})();
