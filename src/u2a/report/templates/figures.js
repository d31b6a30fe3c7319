"use strict";
(async () => {
  if (!document.getElementById("plotly")) return;
  const [library, data] = await Promise.all([unpacked("plotly"), unpacked("plot-data")]);
  const script = document.createElement("script"); // the policy holds its hash
  script.textContent = library;
  document.head.append(script);
  const figures = JSON.parse(data);
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Colours are names of CSS variables, so that a figure follows the reader's light or dark scheme.
  const paint = (value, key) =>
    typeof value === "string" ? (/color$/.test(key) && value.startsWith("--") ? css(value) : value)
    : Array.isArray(value) ? value.map(item => paint(item, key))
    : value && typeof value === "object"
      ? Object.fromEntries(Object.entries(value).map(([k, v]) => [k, paint(v, k)]))
    : value;
  const draw = async () => {
    for (const [key, figure] of Object.entries(figures)) {
      const place = document.getElementById("plot-" + key);
      const { data, layout } = paint(figure, "");
      layout.dragmode = touch ? false : "zoom"; // on a phone a finger scrolls the page
      await Plotly.react(place, data, layout, { displayModeBar: false, responsive: true });
      await new Promise(done => setTimeout(done)); // the page stays usable meanwhile
    }
    document.documentElement.dataset.figures = "drawn";
  };
  // A change of scheme while figures are drawn waits its turn.
  let turn = draw();
  document.addEventListener("u2a-theme", () => { turn = turn.then(draw).catch(cannotShow); });
  await turn;
})().catch(cannotShow);
