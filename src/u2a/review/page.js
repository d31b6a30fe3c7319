// The table of a review. Text of rows reaches the page through textContent alone.
"use strict";

const LIMIT = 50;
const REASONS = ["wrong label", "exclude"];
const KEYS = { w: "wrong label", x: "exclude", u: "" };
const CONTROLS = ["search", "sort", "descending", "sign", "marks"];

let offset = 0;
let latest = 0;
let weighted = false;
let saving = Promise.resolve();

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function number(value, digits = 3) {
  return value === null ? "–" : Number(value.toPrecision(digits)).toString();
}

function showCounts(counts) {
  const marked = REASONS.map((reason) => `${counts[reason]} ${reason}`).join(", ");
  at("counts").textContent = `${counts.remaining} left, ${marked}`;
}

function textCell(row) {
  const answer = element("p", { className: "clipped" }, element("span", { className: "who", textContent: "Answer: " }), row.response);
  const prompt = element("p", { className: "clipped" }, element("span", { className: "who", textContent: "Prompt: " }), row.prompt || "(none)");
  return element("td", { className: "text" }, prompt, answer, element("p", { className: "place", textContent: row.place }));
}

// The name stands before the figure where a narrow window has no room for headings.
function numberCell(name, text) {
  const cell = element("td", { className: "number", textContent: text });
  cell.dataset.name = name;
  return cell;
}

function markCell(row, line) {
  const cell = element("td", {}, element("div", { className: "marks" }));
  for (const reason of REASONS) {
    const button = element("button", { type: "button", textContent: reason, tabIndex: -1 });
    button.dataset.reason = reason;
    button.addEventListener("click", () => mark(row, line, { reason: row.reason === reason ? "" : reason }));
    cell.firstChild.append(button);
  }
  const note = element("input", { type: "text", maxLength: 2000, placeholder: "note", tabIndex: -1, value: row.note });
  note.setAttribute("aria-label", `Note on ${row.place}`);
  note.addEventListener("change", () => mark(row, line, { note: note.value }));
  cell.firstChild.append(note);
  return cell;
}

function showMark(row, line) {
  line.classList.toggle("marked", row.reason !== "");
  for (const button of line.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.reason === row.reason));
  }
  const note = line.querySelector("input");
  note.hidden = row.reason === "";
  note.value = row.note;
}

// Shown at once and saved one after the other: of two on the same row, the later one must be saved last.
function mark(row, line, change) {
  Object.assign(row, change);
  if (!row.reason) row.note = "";
  showMark(row, line);
  const wanted = { row: row.row, reason: row.reason, note: row.note };
  saving = saving.then(() => save(row, line, wanted));
}

async function save(row, line, wanted) {
  try {
    const found = await ask("mark", wanted);
    row.saved = { reason: wanted.reason, note: wanted.note };
    showCounts(found.counts);
    showProblem(null);
  } catch (error) {
    Object.assign(row, row.saved);
    showMark(row, line);
    showProblem(error);
  }
}

function lineOf(row, index) {
  const line = element("tr", { tabIndex: index === 0 ? 0 : -1 });
  row.saved = { reason: row.reason, note: row.note };
  const error = row.error === null ? "" : ` ± ${number(row.error, 2)}`;
  line.append(textCell(row), numberCell("impact", number(row.impact) + error), numberCell("cost", number(row.cost)));
  if (weighted) line.append(numberCell("weight", number(row.weight)));
  line.append(numberCell("tokens", row.tokens === null ? "–" : String(row.tokens)), markCell(row, line));
  line.dataset.row = row.row;
  line.addEventListener("focusin", () => makeCurrent(line));
  line.addEventListener("keydown", (event) => pressed(event, row, line));
  showMark(row, line);
  return line;
}

// One row at a time is in the order of Tab, with its buttons: fifty would be too many to step through.
function makeCurrent(line) {
  for (const other of at("rows").children) {
    const own = other === line;
    other.tabIndex = own ? 0 : -1;
    for (const each of other.querySelectorAll("button, input")) each.tabIndex = own ? 0 : -1;
  }
}

function pressed(event, row, line) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.tagName === "INPUT") {
    if (event.key === "Enter" || event.key === "Escape") line.focus();
    return;
  }
  if (event.target.tagName === "BUTTON" && (event.key === "Enter" || event.key === " ")) return;
  if (event.key in KEYS) mark(row, line, { reason: KEYS[event.key] });
  else if (event.key === "j" || event.key === "ArrowDown") line.nextElementSibling?.focus();
  else if (event.key === "k" || event.key === "ArrowUp") line.previousElementSibling?.focus();
  else if (event.key === "/") at("search").focus();
  else if (event.key === "n" && row.reason) line.querySelector("input").focus();
  else if (event.key === "Enter") line.querySelectorAll(".text p").forEach((each, i) => i < 2 && each.classList.toggle("clipped"));
  else return;
  event.preventDefault();
}

async function load() {
  const number = ++latest;
  const query = new URLSearchParams({ offset, limit: LIMIT });
  for (const name of CONTROLS) query.set(name, at(name).value);
  try {
    const found = await ask(`rows?${query}`);
    if (number !== latest) return;
    at("rows").replaceChildren(...found.rows.map(lineOf));
    const end = offset + found.rows.length;
    at("position").textContent = found.total ? `${offset + 1}–${end} of ${found.total}` : "nothing fits";
    at("previous").disabled = offset === 0;
    at("next").disabled = end >= found.total;
    showCounts(found.counts);
    showProblem(null);
  } catch (error) {
    showProblem(error);
  }
}

function turn(pages) {
  offset = Math.max(0, offset + pages * LIMIT);
  load();
}

async function begin() {
  const about = await ask("about");
  weighted = about.weighted;
  at("run").textContent = about.run;
  at("reviewed").textContent = about.reviewed;
  for (const each of document.querySelectorAll(".weighted")) if (!weighted) each.remove();
  if (!weighted) at("sort").querySelector("[value=weight]").remove();
  for (const name of CONTROLS) {
    at(name).addEventListener(name === "search" ? "input" : "change", () => { offset = 0; load(); });
  }
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("previous").addEventListener("click", () => turn(-1));
  at("next").addEventListener("click", () => turn(1));
  closeButton("counts");
  await load();
}

begin().catch(showProblem);
