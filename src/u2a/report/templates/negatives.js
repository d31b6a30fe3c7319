"use strict";
// The table of negatives: searched, filtered, sorted and exported here. What people wrote becomes text nodes
// only (textContent), never markup.
(() => {
  const PAGE = 25;
  const NAMES = { row: "row", id: "id", impact: "impact", error: "impact_se", cost: "utility_cost",
    weight: "weight", selected: "selected", tokens: "n_tokens", prompt: "prompt", response: "response" };
  const WORDS = new Set(["id", "prompt", "response"]);

  const shown = (value, digits) => { // as number() in wording.py; no digits: an integer, in full
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (!digits) return value.toLocaleString("en-US");
    if (size >= 1e9 || (size > 0 && size < 1e-4)) return value.toExponential(Math.max(0, digits - 2));
    const rounded = Number(value.toPrecision(digits));
    return size >= 1000 ? rounded.toLocaleString("en-US") : String(rounded);
  };

  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  // A text that a spreadsheet would read as a formula gets an apostrophe before it.
  const csvCell = (value, column) => {
    if (value === null || value === undefined) return "";
    if (!WORDS.has(column)) return String(value);
    const text = /^\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|^[\t\r\n]/.test(value) ? "'" + value : value;
    return '"' + text.replaceAll('"', '""') + '"';
  };

  const setUp = async browser => {
    const data = JSON.parse(await unpacked(browser.dataset.negatives));
    const columns = Object.keys(NAMES).filter(name => name in data);
    const count = data.row.length;
    const find = name => browser.querySelector(`[data-control="${name}"]`);
    const state = { sort: "impact", down: true, page: 0, rows: [] };
    let haystack = null; // made at the first search: most readers never search

    const holds = words => {
      haystack ??= Array.from({ length: count }, (_, i) =>
        [data.id[i], data.prompt?.[i], data.response?.[i]].join("\n").toLowerCase());
      return i => words.every(word => haystack[i].includes(word));
    };
    const sign = { up: value => value > 0, down: value => value !== null && value <= 0 };
    const tests = () => {
      const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = words.length ? [holds(words)] : [];
      const chosen = find("selected")?.value, gain = find("gain").value, cost = find("cost").value;
      if (chosen) found.push(i => data.selected[i] === Number(chosen));
      if (gain === "sure") found.push(i => data.error[i] !== null && data.impact[i] > 1.96 * data.error[i]);
      else if (gain) found.push(i => sign[gain](data.impact[i]));
      if (cost) found.push(i => sign[cost](data.cost[i]));
      return found;
    };
    const order = (a, b) => {
      const x = data[state.sort][a], y = data[state.sort][b];
      if (x === null || y === null) return (x === null) - (y === null) || a - b; // unknown last, either way
      const before = typeof x === "string" ? (x < y ? -1 : Number(x > y)) : x - y;
      return (state.down ? -before : before) || a - b;
    };
    const choose = () => {
      const asked = tests();
      state.rows = [];
      for (let i = 0; i < count; i++) if (asked.every(test => test(i))) state.rows.push(i);
      state.rows.sort(order);
      state.page = 0;
      render();
    };

    const table = browser.querySelector("table");
    const width = table.tHead.rows[0].cells.length;
    const body = i => {
      const made = element("tbody"), figures = made.insertRow();
      figures.append(element("th", String(data.row[i]), { scope: "rowgroup" }));
      figures.append(element("td", data.id[i], { class: "words id", title: data.id[i] }));
      const impact = element("td", shown(data.impact[i], 3));
      if (data.error && data.error[i] !== null) impact.append(" ", element("small", "±" + shown(data.error[i], 2)));
      figures.append(impact, element("td", shown(data.cost[i], 3)));
      if (data.weight) figures.append(element("td", shown(data.weight[i], 3)));
      figures.append(element("td", shown(data.tokens[i])));
      if (data.response) made.append(words(i, figures));
      return made;
    };
    const words = (i, figures) => {
      figures.className = "figures";
      const row = element("tr"), cell = element("td", undefined, { class: "says", colspan: width });
      const all = element("details"), text = data.response[i].slice(0, 600).replace(/\s+/g, " ").trim();
      all.append(element("summary", text.length > 140 ? text.slice(0, 139) + "…" : text || "(empty)"));
      const list = element("dl", undefined, { class: "text-of" });
      for (const name of ["prompt", "response"]) {
        list.append(element("dt", name === "prompt" ? "Prompt" : "Response"));
        list.append(element("dd", data[name][i], { class: "text", tabindex: "0" }));
      }
      all.append(list);
      cell.append(all);
      row.append(cell);
      return row;
    };
    const render = () => {
      const pages = Math.max(1, Math.ceil(state.rows.length / PAGE)), from = state.page * PAGE;
      const part = state.rows.slice(from, from + PAGE);
      for (const old of [...table.tBodies]) old.remove();
      table.append(...part.map(body));
      const all = state.rows.length === count ? "" : ` of ${count.toLocaleString("en-US")}`;
      find("status").textContent = part.length
        ? `${(from + 1).toLocaleString("en-US")} to ${(from + part.length).toLocaleString("en-US")} of ` +
          `${state.rows.length.toLocaleString("en-US")} shown negatives${all}, page ${state.page + 1} of ${pages}`
        : "No negative matches.";
      find("before").disabled = state.page === 0;
      find("after").disabled = state.page >= pages - 1;
      for (const name of ["csv", "jsonl"]) find(name).disabled = !part.length;
      for (const button of table.tHead.querySelectorAll("button")) {
        const heading = button.closest("th");
        if (button.dataset.sort === state.sort) heading.setAttribute("aria-sort", state.down ? "descending" : "ascending");
        else heading.removeAttribute("aria-sort");
      }
    };

    const save = (content, type, ending) => {
      const link = element("a", undefined, { download: `${data.run}-negatives.${ending}` });
      link.href = URL.createObjectURL(new Blob([content], { type }));
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    };
    const csv = () => [
      columns.map(name => NAMES[name]).join(","),
      ...state.rows.map(i => columns.map(name => csvCell(data[name][i], name)).join(",")),
    ].join("\r\n") + "\r\n";
    const jsonl = () => state.rows.map(i =>
      JSON.stringify(Object.fromEntries(columns.map(name => [NAMES[name], data[name][i]]))) + "\n").join("");

    let waiting;
    find("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(choose, 150); });
    for (const filter of browser.querySelectorAll("select")) filter.addEventListener("change", choose);
    table.tHead.addEventListener("click", event => {
      const name = event.target.closest("button")?.dataset.sort;
      if (!name) return;
      state.down = name === state.sort ? !state.down : name !== "row" && name !== "id";
      state.sort = name;
      choose();
    });
    const turn = by => { state.page += by; render(); table.scrollIntoView({ block: "nearest" }); };
    find("before").addEventListener("click", () => turn(-1));
    find("after").addEventListener("click", () => turn(1));
    find("csv").addEventListener("click", () => save(csv(), "text/csv", "csv"));
    find("jsonl").addEventListener("click", () => save(jsonl(), "application/x-ndjson", "jsonl"));
    choose();
    browser.hidden = false;
    document.getElementById(browser.dataset.instead).hidden = true;
  };

  for (const browser of document.querySelectorAll("[data-negatives]")) setUp(browser).catch(cannotShow);
})();
