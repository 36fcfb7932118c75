"use strict";
{
  const { figures, templates } = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const plots = [...document.querySelectorAll("[data-figure]")];

  const theme = () => root.dataset.theme || (dark.matches ? "dark" : "light");

  function draw(node, name, width = node.clientWidth) {
    const { data, layout } = figures[node.dataset.figure];
    const narrow = width < 520;
    const own = { ...layout, template: templates[name], height: node.clientHeight, width };
    own.font = { size: narrow ? 11 : 13 };
    // Scrolling the page by touch must not zoom a figure.
    if (touch) own.dragmode = false;
    Plotly.react(node, data, own, {
      displaylogo: false, displayModeBar: touch ? false : "hover",
      modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
    });
  }

  const drawAll = (name) => plots.forEach((node) => draw(node, name));

  function show() {
    button.textContent = theme() === "dark" ? "Light" : "Dark";
    drawAll(theme());
  }

  // Draw one figure at a time, so that the page can be read and scrolled meanwhile.
  function drawNext(index) {
    if (index === plots.length) {
      root.dataset.drawn = "true";
      return;
    }
    draw(plots[index], theme());
    setTimeout(drawNext, 0, index + 1);
  }

  // A button without a script would do nothing, so the script makes it.
  function addCopyButton(text) {
    const copy = document.createElement("button");
    const frame = document.createElement("div");
    copy.type = "button";
    copy.className = "copy";
    copy.textContent = "Copy";
    frame.className = "code";
    text.replaceWith(frame);
    frame.append(text, copy);
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text.textContent);
        copy.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(text);
        copy.textContent = "Selected";
      }
      setTimeout(() => { copy.textContent = "Copy"; }, 2000);
    });
  }

  document.querySelectorAll("pre").forEach(addCopyButton);
  button.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    show();
  });
  dark.addEventListener("change", show);
  let waiting;
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(() => drawAll(theme()), 150);
  });
  // Paper is light, and as wide as A4 and Letter less the margins in the style sheet.
  addEventListener("beforeprint", () => plots.forEach((node) => draw(node, "light", node.closest(".grid") ? 315 : 655)));
  addEventListener("afterprint", () => drawAll(theme()));
  button.textContent = theme() === "dark" ? "Light" : "Dark";
  setTimeout(drawNext, 0, 0);
}
