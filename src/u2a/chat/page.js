// A chat with several models. Their words reach the page through textContent alone.
"use strict";

let columns = [];

function said(className, text) {
  const made = document.createElement("p");
  made.className = `turn ${className}`;
  made.textContent = text;
  return made;
}

function showTurn(turn) {
  columns.forEach((column, index) => {
    column.append(said("asked", turn.prompt), said("answered", turn.answers[index] || "(nothing)"));
  });
}

function showModels(names) {
  columns = names.map((name) => {
    const column = document.createElement("section");
    const title = document.createElement("h2");
    title.textContent = name;
    column.setAttribute("aria-label", name);
    column.append(title);
    return column;
  });
  at("models").replaceChildren(...columns);
}

async function busily(work) {
  const controls = ["send", "reset", "text"].map(at);
  for (const each of controls) each.disabled = true;
  at("state").textContent = "The models are answering…";
  try {
    await work();
    showProblem(null);
  } catch (error) {
    showProblem(error);
  }
  at("state").textContent = "";
  for (const each of controls) each.disabled = false;
  at("text").focus();
}

function send() {
  const text = at("text").value;
  if (!text.trim()) return;
  busily(async () => {
    showTurn(await ask("ask", { text }));
    at("text").value = "";
  });
}

async function begin() {
  const about = await ask("about");
  showModels(about.models);
  about.turns.forEach(showTurn);
  at("words").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  at("text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  at("reset").addEventListener("click", () => busily(async () => {
    await ask("reset", {});
    showModels(about.models);
  }));
  closeButton("state");
  at("text").focus();
}

begin().catch(showProblem);
